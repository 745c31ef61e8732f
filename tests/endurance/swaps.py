#!/usr/bin/env python3
"""Swap the model and scale its workers under load, 50 times each: no request is lost.

python3 tests/endurance/swaps.py
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
    from tests.endurance.swapping import Swaps
    from tests.support.servers.running import Running


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``judge`` reads."""
    add = parser.add_argument
    add("--swaps", type=positive, default=50, metavar="N", help="deploy, roll back, remove (default 50)")
    add("--scalings", type=positive, default=50, metavar="N", help="up and down (default 50)")
    add("--clients", type=positive, default=3, metavar="N", help="that send requests all the time (default 3)")


def judge(server: Running, args: argparse.Namespace) -> Swaps:
    """Swap, then scale."""
    from tests.endurance.swapping import swap

    return swap(server, args.swaps, args.scalings, args.clients)


if __name__ == "__main__":
    run_on_server(judge, add_options, workers=1)
