#!/usr/bin/env python3
"""Half an hour at 80 % of what a server can serve, 5 % of it bad input: nothing is lost, nothing grows.

python3 tests/endurance/soak.py
python3 tests/endurance/soak.py --minutes 480 --csv samples.csv
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.endurance.command import run_on_server

if TYPE_CHECKING:
    from tests.endurance.soaking import Soak
    from tests.support.servers.running import Running

SHARE = 0.8
BAD = 0.05


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``judge`` reads."""
    add = parser.add_argument
    add("--minutes", type=float, default=30, metavar="N", help="how long (default 30)")
    add("--csv", type=Path, metavar="FILE", help="where the samples of memory, files and threads go")


def judge(server: Running, args: argparse.Namespace) -> Soak:
    """Load the server, and sample what it holds."""
    from scripts.lib.console import say
    from tests.endurance.soaking import soak

    report = soak(server, args.workers, 60 * args.minutes, SHARE, BAD, say)
    if args.csv:
        report.write(args.csv)
    return report


if __name__ == "__main__":
    run_on_server(judge, add_options)
