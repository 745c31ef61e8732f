#!/usr/bin/env python3
"""Kill a worker (-9) under load, 20 times, and count what was lost.

python3 tests/endurance/kill_workers.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.lib.options import positive
from tests.endurance.command import run_on_server

if TYPE_CHECKING:
    from tests.endurance.killing import Kills
    from tests.support.servers.running import Running


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``judge`` reads."""
    add = parser.add_argument
    add("--times", type=positive, default=20, metavar="N", help="kills (default 20)")
    add("--clients", type=positive, default=3, metavar="N", help="that send requests all the time (default 3)")


def judge(server: Running, args: argparse.Namespace) -> Kills:
    """Kill the workers in turn."""
    from tests.endurance.killing import kill_workers

    return kill_workers(server, args.times, args.clients)


if __name__ == "__main__":
    run_on_server(judge, add_options)
