#!/usr/bin/env python3
"""Set the number of workers and wait until they are READY.

Of a server that serve.py started on this machine no request is lost: its workers finish what they
have before the surplus is removed. (With --url TorchServe answers what a removed worker has in
hand with 500.)

    python3 scripts/scale.py 4
    python3 scripts/scale.py --min 1 --max 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.options import add_management_options, positive


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``scale.py``."""
    parser = argparse.ArgumentParser(
        prog="scale.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("workers", type=positive, nargs="?", metavar="N", help="worker processes, both least and most")
    add("--min", type=positive, metavar="N", help="at least so many workers")
    add("--max", type=positive, metavar="N", help="at most so many workers")
    add("--timeout", type=positive, default=180, metavar="SECONDS", help="how long to wait for them (default 180)")
    add_management_options(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Scale and report."""
    from contextlib import nullcontext

    from scripts.lib.server import connect, find_server, held_workers

    if args.workers is None and args.min is None and args.max is None:
        build_parser().error("how many workers? give a number (scale.py 4), or --min and --max")
    minimum = args.min or args.workers or 1
    maximum = args.max or args.workers or minimum
    if minimum > maximum:
        build_parser().error(f"at least {minimum} and at most {maximum} workers contradict each other")
    management = connect(args.port, args.url)
    server = None if args.url else find_server(args.port)
    surplus = maximum < len(management.status().workers)
    with held_workers(server) if server and surplus else nullcontext():
        management.scale(minimum, maximum)
    status = management.wait_for_workers(minimum, maximum, args.timeout)
    say(f"{status.ready} workers READY (at least {status.min_workers}, at most {status.max_workers})")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
