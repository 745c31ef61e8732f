#!/usr/bin/env python3
"""Send four times what a server can serve, at a constant rate, for two minutes: the surplus is refused at once.

The client has a core for itself, the server the others. With --workers, start as many as those are.

python3 tests/endurance/overload.py
python3 tests/endurance/overload.py --front-door    # through nginx, which limits each client
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
    from tests.endurance.overloading import Overload
    from tests.support.servers.running import Running


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``judge`` reads."""
    add = parser.add_argument
    add("--seconds", type=positive, default=120, metavar="N", help="how long (default 120)")
    add("--times", type=positive, default=4, metavar="N", help="the capacity is sent (default 4)")
    add("--front-door", action="store_true", help="through nginx")


def judge(server: Running, args: argparse.Namespace) -> Overload:
    """Measure the capacity, send a multiple of it."""
    from contextlib import ExitStack

    from tests.endurance.overloading import overload
    from tests.support.servers.front_door import front_door

    with ExitStack() as stack:
        door = stack.enter_context(front_door(f"127.0.0.1:{server.port}")) if args.front_door else None
        return overload(server, args.workers, args.times, args.seconds, door.port if door else None)


if __name__ == "__main__":
    run_on_server(judge, add_options, workers=1, apart=True)
