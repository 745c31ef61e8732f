"""Lock files: every package that a requirements file leads to, with its version and the SHA-256 of its files.

requirements*.txt (by hand)  →  requirements*.lock (by ``scripts/lock.py``)  →  pip (``environment.from_locks``)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scripts.lib.console import CommandError
from scripts.lib.environment import OLDEST_PYTHON

SOURCES = (
    "requirements-dev.txt",  # first: it holds all of the next two, and what runs must have the versions that are tested
    "requirements.txt",
    "requirements-int8.txt",
    "scripts/lib/benchmarking/apps/requirements.txt",
)
"""What is locked, relative to the checkout; the lock has the same name, with the ending ``.lock``."""
TORCH_LOCK = "requirements-torch.lock"
_TORCH = re.compile(r"(?:torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")
"""What isn't installed from a lock where torch comes from another index: torch, and the CUDA of PyPI's builds."""


def lock_of(source: str) -> str:
    """The lock file of a requirements file: ``requirements.lock`` of ``requirements.txt``."""
    return f"{source.removesuffix('.txt')}.lock"


def make_locks(root: Path, upgrade: bool = False) -> dict[str, str]:
    """The locks of a checkout, as file name to content, for all Pythons and systems at once.

    Args:
        root: the checkout with ``SOURCES``.
        upgrade: take the newest versions of what isn't pinned by hand; else what is locked stays as far as it fits.

    Raises:
        CommandError: uv isn't installed, or finds no versions that fit together; its output is in the message.
    """
    preferred = "" if upgrade else "".join(_read(root / name) for name in (lock_of(SOURCES[0]), TORCH_LOCK))
    whole: dict[str, list[str]] = {}
    for source in SOURCES:
        text = _compile(root, source, preferred)
        whole[source] = re.split(r"\n(?=\S)", text.strip())  # a requirement with its hashes, and what asks for it
        if source == SOURCES[0]:
            preferred = text
    torch = [block for block in whole["requirements.txt"] if _TORCH.match(block)]
    locks = {TORCH_LOCK: _lock("torch and torchvision as PyPI has them, and their CUDA.", torch)}
    apart = {*pins("\n".join(torch)), "pip"}  # pip is there already, and doesn't replace itself while it works
    for source, blocks in whole.items():
        own = [block for block in blocks if not apart & set(pins(block))]
        locks[lock_of(source)] = _lock(f"All that {source} leads to, except what {TORCH_LOCK} holds.", own)
    return locks


def pins(lock: str) -> Mapping[str, list[str]]:
    """Name to the versions in a lock; several where they differ by Python or system."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^\s;\\]+)", lock, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def _lock(what: str, blocks: list[str]) -> str:
    return "\n".join([f"# {what}", "# Made by `python3 scripts/lock.py`; don't edit.", *blocks]) + "\n"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _compile(root: Path, source: str, preferred: str) -> str:
    """What uv makes of ``source``, at the versions in ``preferred`` where they fit."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if not uv:
        raise CommandError("uv isn't here; it comes with requirements-dev.lock: run this without DENSENET_NO_VENV")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock"
        out.write_text(preferred, encoding="utf-8")
        command = [
            *(uv, "pip", "compile", "--quiet", "--no-config", "--universal", "--generate-hashes"),
            *("--python-version", "{}.{}".format(*OLDEST_PYTHON), "--python", sys.executable),
            *("--no-header", "--no-emit-index-url", "--output-file", str(out), source),
        ]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise CommandError(f"uv can't lock {source}: {said}; change its pins, or check the network connection")
        return out.read_text(encoding="utf-8")
