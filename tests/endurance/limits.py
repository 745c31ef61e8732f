#!/usr/bin/env python3
"""Put a server into control groups of 1.5, 2 and 3 GiB, send everything that takes memory, straight and through nginx.

python3 tests/endurance/limits.py                   # as root; all three sizes, two rounds each, about an hour
python3 tests/endurance/limits.py --sizes 1.5 --rounds 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.lib.environment import run
from scripts.lib.options import positive
from tests.endurance.command import new_parser

if TYPE_CHECKING:
    from tests.endurance.limiting import Pressure


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``limits.py``."""
    parser = new_parser(__file__, __doc__)
    add = parser.add_argument
    add("--sizes", type=float, nargs="+", default=[1.5, 2.0, 3.0], metavar="GIB", help="(default 1.5 2 3)")
    add("--rounds", type=positive, default=2, metavar="N", help="of every load (default 2)")
    add("--at-once", type=positive, default=100, metavar="N", help="requests (default 100)")
    return parser


def judge(gib: float, through: bool, rounds: int, at_once: int) -> Pressure:
    """Press a server in a group of ``gib`` GiB, ``through`` nginx or straight."""
    import tempfile
    from contextlib import ExitStack

    from tests.endurance.limiting import GIB, confined, press
    from tests.support.servers.front_door import front_door

    with ExitStack() as stack:
        store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="densenet-endurance-")))
        size = int(gib * GIB)
        server, group = stack.enter_context(confined(size, store, workers=2 if gib >= 3 else 1))
        port = stack.enter_context(front_door(f"127.0.0.1:{server.port}")).port if through else None
        return press(server, group, size, rounds, at_once, port)


def main(args: argparse.Namespace) -> int:
    """Judge each size, straight and through nginx."""
    failed = False
    for gib in args.sizes:
        for through in (False, True):
            report = judge(gib, through, args.rounds, args.at_once)
            print(f"{'through nginx' if through else 'straight'}, {report.text()}", flush=True)
            failed |= bool(report.broken())
    return int(failed)


if __name__ == "__main__":
    run(build_parser, main, development=True)
