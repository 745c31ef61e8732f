"""Kubernetes manifests as a cluster would read them: rendered, KServe's schema, what network policies allow.

KServe publishes its schema as the models of its Python package.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts.lib.paths import CONFIG
from tests.support.machine.programs import program

KUBERNETES = CONFIG / "kubernetes"

Manifest = dict[str, Any]


def kubectl() -> str:
    """The development requirements' kubectl, or the machine's."""
    own = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    return own or program("kubectl", package="kubernetes-client")


def render(folder: Path) -> list[Manifest]:
    """The manifests that ``kubectl apply -k folder`` would send.

    Raises:
        AssertionError: kustomize refuses the folder; says why.
    """
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def find(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """The one manifest of this kind and name; a name may carry the suffix that kustomize adds."""
    (found,) = (
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", manifest["metadata"]["name"])
    )
    return found


def pod_spec(manifests: Iterable[Manifest], deployment: str) -> Manifest:
    """The specification of a deployment's pods."""
    spec: Manifest = find(manifests, "Deployment", deployment)["spec"]["template"]["spec"]
    return spec


# ---- KServe's schema -----------------------------------------------------------------------------


def kserve_schema(models: Path, definitions: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of ``InferenceService``, from the models of KServe's package; keys that they lack are refused.

    Args:
        models: the package's folder ``kserve/models``; read, not imported, because importing it needs all of KServe.
        definitions: Kubernetes' own types by name, which KServe's refer to.

    Returns:
        A schema with everything in its ``$defs``. A type that neither side knows accepts nothing.
    """
    own: dict[str, Any] = {}
    for file in models.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                literals = {
                    statement.targets[0].id: ast.literal_eval(statement.value)
                    for statement in node.body
                    if isinstance(statement, ast.Assign)
                    and isinstance(statement.targets[0], ast.Name)
                    and isinstance(statement.value, ast.Dict)
                }
                required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", ast.unparse(node))
                keys: dict[str, str] = literals["attribute_map"]
                own[node.name] = {
                    "type": "object",
                    "properties": {keys[name]: _schema(kind) for name, kind in literals["openapi_types"].items()},
                    "required": sorted({keys[name] for name in required}),
                    "additionalProperties": False,
                }
    kubernetes = {_kserve_name(name): {"$ref": f"#/$defs/{name}"} for name in definitions}
    mentioned = set(re.findall(r"#/\$defs/([\w.]+)", str(own)))
    known = {**definitions, **kubernetes, **own}
    unknown = dict.fromkeys(mentioned - set(known), False)
    return {"$ref": "#/$defs/V1beta1InferenceService", "$defs": {**known, **unknown}}


def _schema(kind: str) -> dict[str, Any]:
    """The schema of a type as KServe's models write it: ``str``, ``list[V1Container]``, ``dict(str, str)``."""
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _schema(match[1])}
    if match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _schema(match[1])}
    simple = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
    return {"type": simple[kind]} if kind in simple else {"$ref": f"#/$defs/{kind}"}


def _kserve_name(name: str) -> str:
    """What KServe's models call a type of Kubernetes: ``io.k8s.api.core.v1.Container`` is ``V1Container``."""
    group, version, kind = name.rsplit(".", 2)
    if group.endswith((".core", ".meta")):
        return version.capitalize() + kind
    return "K8sIo" + "".join(part.capitalize() for part in (*group.split(".")[2:], version)) + kind


# ---- network policies ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pod:
    """Who speaks or is spoken to: a pod's labels and namespace; no namespace: something outside the cluster."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def reaches(policies: Iterable[Manifest], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether ``source`` may open a connection to a port of ``target``.

    As Kubernetes defines it: a pod that no policy selects is open; once one does, what any of them allows is allowed.
    Both ends must agree, the target's ingress and the source's egress.
    """
    policies = list(policies)
    return all(
        _direction_allows(policies, this, other, direction, port, protocol)
        for this, other, direction in ((target, source, "Ingress"), (source, target, "Egress"))
    )


def _direction_allows(
    policies: list[Manifest], this: Pod, other: Pod, direction: str, port: int, protocol: str
) -> bool:
    rules = [
        policy["spec"].get(direction.lower(), [])
        for policy in policies
        if policy["metadata"]["namespace"] == this.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], this.labels)
    ]
    if not rules:
        return True
    peers = "from" if direction == "Ingress" else "to"
    return any(
        (peers not in rule or any(_is_peer(peer, this.namespace, other) for peer in rule[peers]))
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for policy in rules
        for rule in policy
    )


def _is_peer(peer: Manifest, namespace: str, other: Pod) -> bool:
    assert set(peer) <= {"podSelector", "namespaceSelector"}, f"not understood: {peer}"
    if "namespaceSelector" in peer:
        # the label that Kubernetes gives every namespace
        inside = bool(other.namespace) and _selects(
            peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}
        )
    else:
        inside = other.namespace == namespace
    return inside and _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, f"not understood: {selector}"
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
