"""Every command and every Python example of docs/client.md and docs/protocols.md, run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from scripts.lib.paths import ROOT
from tests.support.documents import check, steps
from tests.support.pictures.golden import CHELSEA, DOG
from tests.support.servers.running import Running

DOCUMENTS = ("client.md", "protocols.md")
_BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    """Document and text of the blocks of a kind."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        found += [(name, match[2]) for match in _BLOCK.finditer(text) if match[1] == kind]
    return found


@pytest.fixture(scope="module")
def shell(server: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder in which the examples run, with a picture folder of its own."""
    view = tmp_path_factory.mktemp("examples")
    for name in ("scripts", "handler"):
        (view / name).symlink_to(ROOT / name)
    (view / "images").mkdir()
    if DOG.is_file():
        shutil.copy(DOG, view / "images" / "dog.jpg")
    else:
        with Image.open(CHELSEA) as cat:
            cat.save(view / "images" / "dog.jpg")
    return {"port": str(server.port), "view": str(view), "store": str(server.model_store), "cache": str(view / "cache")}


def test_every_command_prints_what_the_page_shows(shell: dict[str, str]) -> None:
    commands = [step for _, text in blocks("console") for step in steps(text)]
    assert len(commands) >= 12
    for step in commands:
        check(step, shell, compare=DOG.is_file())  # the pages show its labels


PYTHON = blocks("python")


@pytest.mark.parametrize(("name", "code"), PYTHON, ids=[f"{name}-{n}" for n, (name, _) in enumerate(PYTHON)])
def test_every_python_example_runs(shell: dict[str, str], name: str, code: str) -> None:
    port = int(shell["port"])
    code = re.sub(r":500([0-4])\b", lambda m: f":{port + int(m[1])}", code)
    result = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        cwd=shell["view"],
        env={**os.environ, "PYTHONPATH": shell["view"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    if DOG.is_file():
        assert "Samoyed" in result.stdout, result.stdout


def test_the_pages_have_examples() -> None:
    assert len(PYTHON) >= 5
