#!/usr/bin/env python3
"""Kill a worker (-9) under load, 20 times, and count what was lost.

python3 tests/endurance/kill_workers.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.lib.environment import run
from scripts.lib.options import positive

RECOVERY_SECONDS = 10


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``kill_workers.py``."""
    parser = argparse.ArgumentParser(
        prog="kill_workers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--times", type=positive, default=20, metavar="N", help="kills (default 20)")
    add("--clients", type=positive, default=3, metavar="N", help="that send requests all the time (default 3)")
    add("--workers", type=positive, default=2, metavar="N", help="of the server (default 2)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Kill the workers of a server of its own; 1 if more was lost than what they had, or they came back late."""
    import tempfile

    from tests.e2e.conftest import serving
    from tests.faults import kill_workers

    with (
        tempfile.TemporaryDirectory(prefix="densenet-kill-") as store,
        serving(Path(store), "--workers", str(args.workers)) as server,
    ):
        kills = kill_workers(server, args.times, args.clients)
    print(kills.text())
    kept = kills.failed <= args.times and max(kills.recoveries) <= RECOVERY_SECONDS
    return 0 if kept else 1


if __name__ == "__main__":
    run(build_parser, main, development=True)
