"""Every command block of the README, run in order as it stands, and its output compared.

A block is ```` ```console ````; lines that begin with ``$`` are commands, the others what they print. Numbers match any
numbers, ``…`` matches anything. What changes for the test: the port, the model store, and that
the pictures' folder starts with a copy of the Samoyed where there is one, since there may be no internet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.lib.paths import ROOT
from tests.e2e.conftest import command
from tests.golden import DOG
from tests.ports import free_ports

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```console\n(?P<text>.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Step:
    """A command and what the README says that it prints."""

    command: str
    output: str


def steps(text: str) -> list[Step]:
    """The commands of a block."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [Step(*part.split("\n", 1)) for part in parts]


BLOCKS = [(match["why"], steps(match["text"])) for match in BLOCK.finditer(README)]


def pattern(output: str) -> re.Pattern[str]:
    """What an output of the README stands for."""
    escaped = re.escape(NUMBER.sub("0", output.strip()))
    return re.compile(escaped.replace("…", ".*"), re.DOTALL)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The folder in which the commands run: a view of the checkout with a picture folder of its own."""
    port = free_ports()
    home = tmp_path_factory.mktemp("readme")
    view = home / "checkout"
    view.mkdir()
    for name in ("scripts", "handler", "config", "requirements.txt", "requirements-dev.txt", "tests", "pyproject.toml"):
        (view / name).symlink_to(ROOT / name)
    (view / "images").mkdir()
    if DOG.is_file():
        shutil.copy(DOG, view / "images" / "dog.jpg")
    yield {"port": str(port), "view": str(view), "store": str(home / "store"), "cache": str(home / "cache")}
    command("stop.py", "--port", str(port))


def run(step: Step, shell: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the README in a shell, on the test's port and model store."""
    line = re.sub(r":500([0-4])\b", lambda m: f":{int(shell['port']) + int(m[1])}", step.command)
    line = re.sub(r"(scripts/(?:serve|stop|status|scale|predict)\.py)", rf"\1 --port {shell['port']}", line)
    line = re.sub(r"(scripts/serve\.py)", rf"\1 --model-store {shell['store']} --workers 2", line)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DENSENET_NO_VENV": "1",
        "DENSENET_CACHE": shell["cache"],
        # the README's output is the bundled model's, with and without internet
        "DENSENET_WEIGHTS_MIRROR": str(Path(shell["view"]) / "nothing-here"),
    }
    return subprocess.run(
        ["bash", "-c", line],
        cwd=shell["view"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check(step: Step, shell: dict[str, str], compare: bool = True) -> None:
    """Run a command of a document; it succeeds and, where ``compare``, prints what the document shows."""
    result = run(step, shell)
    assert result.returncode == 0, f"$ {step.command}\n{result.stdout}{result.stderr}"
    printed = NUMBER.sub("0", result.stdout.strip())
    shown = f"$ {step.command}\n{result.stdout}\n--- the document:\n{step.output}"
    assert not compare or pattern(step.output).fullmatch(printed), shown


def test_the_readme_says_why_a_block_is_not_run() -> None:
    assert [why.split(";")[0] for why, _ in BLOCKS if why] == [
        "it needs the reader's own pictures",
        "it uses fixed ports",
        "it needs a Docker engine",
    ]
    assert sum(len(block) for why, block in BLOCKS if not why) >= 10


@pytest.mark.skipif(not DOG.is_file(), reason="the README's picture is neither in ../shared nor fetched by a test")
def test_the_readme_does_what_it_says(shell: dict[str, str]) -> None:
    for step in (step for why, block in BLOCKS if not why for step in block):
        check(step, shell)


def test_every_link_in_the_documents_leads_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(documents) >= 20
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_command_has_help() -> None:
    scripts = sorted(p.name for p in (ROOT / "scripts").glob("*.py") if p.name != "__init__.py")
    assert len(scripts) >= 11
    for script in scripts:
        result = command(script, "--help")
        assert result.returncode == 0
        assert result.stdout.startswith(f"usage: {script}")
        assert command(script, "--no-such-flag").returncode == 2
