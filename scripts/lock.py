#!/usr/bin/env python3
"""Write the lock files anew: every package with its version and the SHA-256 of its files, for all Pythons and systems.

    python3 scripts/lock.py              # after a change of a requirements*.txt
    python3 scripts/lock.py --upgrade    # newest versions of what isn't pinned there

The set-up installs from requirements.lock and requirements-torch.lock, tests and lint from requirements-dev.lock.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.paths import ROOT


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``lock.py``."""
    parser = argparse.ArgumentParser(
        prog="lock.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest versions of what the requirements files don't pin"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the locks that differ."""
    from scripts.lib.locks import make_locks
    from scripts.lib.model_folder import write_atomically

    for name, text in make_locks(ROOT, args.upgrade).items():
        path = ROOT / name
        changed = not path.is_file() or path.read_text(encoding="utf-8") != text
        if changed:
            write_atomically(path, text.encode())
        say(f"{name}: {'written' if changed else 'unchanged'}")
    return 0


if __name__ == "__main__":
    run(build_parser, main, development=True)
