#!/usr/bin/env python3
"""Ask PyPI whether a locked package has a known weakness; fail if one has.

    python3 scripts/audit.py

What doesn't count, and why, stands in .ci/audit-ignore.txt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, say
from scripts.lib.environment import run
from scripts.lib.paths import ROOT

IGNORE = ROOT / ".ci" / "audit-ignore.txt"


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``audit.py``."""
    parser = argparse.ArgumentParser(
        prog="audit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--if-reachable", action="store_true", help="succeed where nobody answers, and say that nothing is known"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Ask, and tell."""
    from scripts.lib.audit import NotAskedError, audit, ignored
    from scripts.lib.locks import SOURCES, TORCH_LOCK, lock_of

    ignore = ignored(IGNORE.read_text(encoding="utf-8"))
    try:
        found = audit([ROOT / name for name in (*map(lock_of, SOURCES), TORCH_LOCK)], list(ignore))
    except NotAskedError as error:
        if not args.if_reachable:
            raise
        say(f"known weaknesses: not asked ({error})")
        return 0
    for line in found.weak:
        say(line)
    if found.weak:
        raise CommandError(
            f"{len(found.weak)} known weaknesses; pin a version without them and run scripts/lock.py, or, where one "
            f"can't be reached here, write it into {IGNORE.relative_to(ROOT)} with the reason"
        )
    say(f"{found.asked} packages asked about, no known weakness; ignored by {IGNORE.name}: {len(ignore)}")
    return 0


if __name__ == "__main__":
    run(build_parser, main, development=True)
