"""The workflows run what the documents tell people to run, on what the set-up accepts, with nothing unpinned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.lib.environment import NEWEST_PYTHON, OLDEST_PYTHON
from scripts.lib.paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/releasing.md")
AS_ROOT = 'sudo env "PATH=$PATH" '
HOST = "gh release create "
"""Begins what only the host can do, with its own program."""


def jobs(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"])


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


def told() -> set[str]:
    """Every command that the documents show, in a block or within a line."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    return {*re.findall(r"^ *\$ (.+)$", text, re.MULTILINE), *re.findall(r"`([^`\n]+)`", text)}


def test_there_are_workflows_for_changes_nights_and_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["checks", "nightly", "release"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_are_those_that_people_are_told(path: Path) -> None:
    run = [step["run"].removeprefix(AS_ROOT) for step in steps(path) if "run" in step]
    assert run
    assert [command for command in run if command not in told() and not command.startswith(HOST)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_jobs_end(path: Path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text(encoding="utf-8"))
    assert [use for use in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []
    assert len(used) == sum("uses" in step for step in steps(path)) > 0
    assert all(job["timeout-minutes"] for job in jobs(path).values())


def test_the_dev_container_is_set_up_as_people_are_told() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] in told()
    assert f"python:{NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}-" in container["image"]


def test_tests_run_on_each_python_that_the_set_up_accepts() -> None:
    (major, oldest), (_, newest) = OLDEST_PYTHON, NEWEST_PYTHON
    accepted = [f"{major}.{minor}" for minor in range(oldest, newest + 1)]
    matrix = jobs(ROOT / ".github" / "workflows" / "checks.yml")["test"]["strategy"]["matrix"]
    assert matrix["python"] == accepted
    assert [system.split("-")[0] for system in matrix["system"]] == ["ubuntu"]
    others = sorted((entry["system"].split("-")[0], entry["python"]) for entry in matrix["include"])
    assert others == [(system, version) for system in ("macos", "windows") for version in (accepted[0], accepted[-1])]
    elsewhere = [
        step["with"]["python-version"]
        for path in WORKFLOWS
        for step in steps(path)
        if "python" in str(step.get("uses"))
    ]
    assert set(elsewhere) == {accepted[-1], "${{ matrix.python }}"}
    requires = re.findall(r'^requires-python = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert requires == [f">={major}.{oldest},<{major}.{newest + 1}"]
