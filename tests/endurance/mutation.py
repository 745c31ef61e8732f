#!/usr/bin/env python3
"""Change the handler at places chosen by chance, one at a time: at least 85 % of the changes make a unit test fail.

python3 tests/endurance/mutation.py                         # 300 mutants, an hour on two cores
python3 tests/endurance/mutation.py --mutants 100 --seed 8
python3 tests/endurance/mutation.py --survivors             # after a test was added: those that weren't noticed

What was found is kept, so that a run that was interrupted goes on; the checkout itself isn't changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.lib.environment import run
from scripts.lib.options import positive
from tests.endurance.command import new_parser


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``mutation.py``."""
    parser = new_parser(__file__, __doc__)
    add = parser.add_argument
    add("--mutants", type=positive, default=300, metavar="N", help="how many (default 300)")
    add("--seed", type=int, default=7, help="of their choice (default 7)")
    add("--processes", type=positive, default=2, metavar="N", help="at once (default 2)")
    add("--survivors", action="store_true", help="run those of the same choice that survived once more")
    return parser


def main(args: argparse.Namespace) -> int:
    """Go on with the session of this choice, or begin it."""
    import hashlib
    import os

    from scripts.lib.console import say
    from scripts.lib.paths import CACHE, ROOT
    from tests.endurance.mutating import Mutants, Suite, examine, open_session

    def state(*folders: str) -> Path:
        digest = hashlib.sha256()
        for file in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
        return CACHE / "mutation" / digest.hexdigest()[:16]

    os.chdir(ROOT)
    handler, everything = state("handler"), state("handler", "tests/unit", "tests/support")
    for folder in (handler, everything):
        folder.mkdir(parents=True, exist_ok=True)
    session = open_session(handler / f"{args.mutants}-{args.seed}.sqlite", args.mutants, args.seed)
    again = [item for item, result in session.completed_work_items if args.survivors and not result.is_killed]
    items = [*session.pending_work_items, *again]
    if items:
        examine(session, items, Suite(everything), args.processes, say)
    report = Mutants(list(session.completed_work_items))
    print(report.text())
    return 1 if report.broken() else 0


if __name__ == "__main__":
    run(build_parser, main, development=True)
