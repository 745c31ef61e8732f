#!/usr/bin/env python3
"""Send hostile requests to a real server, a good one beside them all the time, and say what became of both.

python3 tests/endurance/fuzz.py                     # 20,000 inputs, about ten minutes
python3 tests/endurance/fuzz.py --inputs 100000 --seed 7
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.lib.environment import run
from scripts.lib.options import positive


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``fuzz.py``."""
    parser = argparse.ArgumentParser(
        prog="fuzz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--inputs", type=positive, default=20_000, metavar="N", help="hostile requests (default 20000)")
    add("--seed", type=int, default=1, help="of the random choices; the same seed sends the same (default 1)")
    add("--clients", type=positive, default=2, metavar="N", help="that send them, each its share (default 2)")
    add("--workers", type=positive, default=2, metavar="N", help="of the server (default 2)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Fuzz a server of its own; 1 if a promise wasn't kept."""
    import tempfile

    from tests.e2e.conftest import serving
    from tests.fuzzing import fuzz

    with (
        tempfile.TemporaryDirectory(prefix="densenet-fuzz-") as store,
        serving(Path(store), "--workers", str(args.workers)) as server,
    ):
        report = fuzz(server, args.inputs, args.seed, args.clients, heavy=True)
    print(report.text())
    return 1 if report.broken_promises() else 0


if __name__ == "__main__":
    run(build_parser, main, development=True)
