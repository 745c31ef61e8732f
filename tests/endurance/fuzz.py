#!/usr/bin/env python3
"""Send hostile requests to a real server, a good one beside them all the time, and say what became of both.

python3 tests/endurance/fuzz.py                     # 20,000 inputs, about ten minutes
python3 tests/endurance/fuzz.py --inputs 50000 --grpc 5000 --seed 7
python3 tests/endurance/fuzz.py --front-door        # through nginx
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
    from tests.endurance.fuzzing import Fuzzing
    from tests.support.servers.running import Running

ALONE = 500
"""Good requests alone, before and again after."""
REST_S = 30
"""After the last request, before memory is judged."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``judge`` reads."""
    add = parser.add_argument
    add("--inputs", type=positive, default=20_000, metavar="N", help="hostile requests (default 20000)")
    add("--grpc", type=int, default=1000, metavar="N", help="of them over gRPC (default 1000)")
    add("--seed", type=int, help="of the random choices; the same seed sends the same (default: a new one)")
    add("--clients", type=positive, default=2, metavar="N", help="that send them, each its share (default 2)")
    add("--front-door", action="store_true", help="through nginx, without its limits for each client")


def judge(server: Running, args: argparse.Namespace) -> Fuzzing:
    """Fuzz the server."""
    from contextlib import ExitStack

    from tests.endurance.fuzzing import fuzz
    from tests.support.hostile.seeds import fuzz_seed
    from tests.support.servers.front_door import NO_CLIENT_LIMITS, front_door

    seed = fuzz_seed() if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with ExitStack() as stack:
        port = None
        if args.front_door:
            port = stack.enter_context(front_door(f"127.0.0.1:{server.port}", replace=NO_CLIENT_LIMITS)).port
        return fuzz(server, args.inputs, seed, args.clients, True, ALONE, REST_S, port, args.grpc)


if __name__ == "__main__":
    run_on_server(judge, add_options)
