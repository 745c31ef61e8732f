"""The command blocks of documents: run as they stand, and what they print compared with what is shown.

A block is ```` ```console ````; lines that begin with ``$`` are commands, the others what they print. Numbers match any
numbers, ``…`` matches anything. What changes for a test: the port, the model store and the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.paths import ROOT
from tests.support.machine.ports import free_ports
from tests.support.pictures.golden import DOG
from tests.support.servers.running import command

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


def pattern(output: str) -> re.Pattern[str]:
    """What an output of the README stands for."""
    escaped = re.escape(NUMBER.sub("0", output.strip()))
    return re.compile(escaped.replace("…", ".*"), re.DOTALL)


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


@contextmanager
def checkout(home: Path) -> Iterator[dict[str, str]]:
    """The folder in which the commands run: a view of the checkout with a picture folder of its own."""
    port = free_ports()
    view = home / "checkout"
    view.mkdir()
    for name in ("scripts", "handler", "config", "requirements.txt", "requirements-dev.txt", "tests", "pyproject.toml"):
        (view / name).symlink_to(ROOT / name)
    (view / "images").mkdir()
    if DOG.is_file():
        shutil.copy(DOG, view / "images" / "dog.jpg")
    yield {"port": str(port), "view": str(view), "store": str(home / "store"), "cache": str(home / "cache")}
    command("stop.py", "--port", str(port))
