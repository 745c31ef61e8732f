"""The words of the fuzzing are those of the code: the vocabulary lacks none that the server reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import yaml

from handler import open_inference, payload
from scripts.lib.paths import CONFIG, OPENAPI, ROOT
from tests.support.hostile import grpc as hostile_grpc
from tests.support.hostile.vocabulary import HEADERS, KEYS, ROUTES, TYPES, WORDS
from tests.support.servers import torchserve_jar

LOADING = {"initialize", "_limit"}
"""Functions of the handler that read the archive, no request."""
READERS = (
    "densenet_handler",
    "payload",
    "open_inference",
    "hold",
    "metrics",
    "explanation",
    "responses",
    "page/__init__",
)
KNOWN = {word.lower() for word in (*KEYS, *HEADERS, *WORDS, *TYPES)}


def words_read(module: str) -> set[str]:
    """The texts with which a module of the handler looks something up: ``x["…"]``, ``x.get("…")``, ``"…" in x``."""
    tree = ast.parse((ROOT / "handler" / f"{module}.py").read_text(encoding="utf-8"))
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def texts(node: ast.expr) -> Iterator[str]:
        found = constants.get(node.id) if isinstance(node, ast.Name) else getattr(node, "value", None)
        if isinstance(node, (ast.Name, ast.Constant)) and isinstance(found, str):
            yield found

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef) and node.name in LOADING:
            return
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            yield from texts(node.slice)
        elif isinstance(node, ast.Compare):
            yield from texts(node.left)
            for each in node.comparators:
                yield from texts(each)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("get", "pop", "header", "prefers", "_flag"):
                for each in node.args:
                    yield from texts(each)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return set(walk(tree))


def test_no_word_that_the_handler_reads_is_missing() -> None:
    read = {word for module in READERS for word in words_read(module)}
    assert {"about", "inputs", "binary_data", "x-densenet-hold", "instances", "accept"} <= read  # they are found
    exported = {*payload.PICTURE_FIELDS, *payload.INSTANCE_FIELDS, *payload.METHODS, *open_inference.OUTPUTS}
    assert {word for word in read | exported if word.lower() not in KNOWN} <= NO_WORDS


NO_WORDS = {"nt", "posix", "win32", "cpu", "heat"}
"""What is looked up or compared, too, and comes from no client."""


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of a parsed description."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schemas(child)


def test_no_word_of_the_description_is_missing() -> None:
    described = yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))
    requests = [
        *(operation.get("requestBody", {}) for path in described["paths"].values() for operation in schemas(path)),
        *described["components"]["requestBodies"].values(),
        *(
            s
            for name, s in described["components"]["schemas"].items()
            if not re.search(r"Answer|Prediction|Explanation|Error|^Model|Response", name)
        ),
    ]
    found: set[str] = set()
    for schema in schemas(requests):
        found |= set(schema.get("properties", {})) | set(schema.get("enum", [])) | {schema.get("const", "image")}
        found |= {name for name in schema if "/" in name}  # content types
    parameters = [s for s in schemas(described["paths"]) if s.get("in") in ("query", "header")]
    found |= {s["name"] for s in parameters} | {word for s in parameters for word in s["schema"].get("enum", [])}
    assert {"topk", "b64", "multipart/form-data", "binary_data_output", "about", "pixels"} <= found
    assert {word for word in found if word.lower() not in KNOWN} == set()
    paths = {path.format(version="1.0") for path in described["paths"]}
    assert paths - set(ROUTES) == set()


def test_no_header_of_the_frontend_and_the_front_door_is_missing() -> None:
    sources = [
        *(ROOT / "scripts" / "lib" / "frontend" / "densenet").glob("*.java"),
        *(CONFIG / "nginx").glob("*.conf"),
        *(ROOT / "handler").rglob("*.py"),
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    found = set(re.findall(r"\bx[-_][a-z]+(?:[-_][a-z]+)*", text, re.IGNORECASE))
    found = {re.sub("_", "-", re.sub(r"^(?:sent|upstream)_http_", "", word)).lower() for word in found}
    assert {"x-densenet-hold", "x-densenet-patience", "x-request-start"} <= found
    assert found - KNOWN - ANSWERED == set()


ANSWERED = {"x-content-type-options", "x-accel-redirect", "x-frame-options"}
"""Headers of answers alone."""


def test_no_route_of_torchserve_is_missing() -> None:
    routes = {
        route.rstrip("/").replace("{model_name}", "densenet").replace("{model_version}", "1.0") or "/"
        for route in torchserve_jar.routes()
    }
    assert {"/v1/models/densenet:predict", "/models/densenet/1.0/set-default", "/v2/health/live"} <= routes
    assert {route for route in routes if not any(known.startswith(route) for known in ROUTES)} == set()
    written = "".join(ROUTES)
    assert {word for word in torchserve_jar.segments() if word not in written} == set()


def test_no_method_of_grpc_is_missing() -> None:
    assert set(hostile_grpc.METHODS) == set(torchserve_jar.methods())
