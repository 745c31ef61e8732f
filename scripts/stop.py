#!/usr/bin/env python3
"""Stop the server that serve.py started.

python3 scripts/stop.py
python3 scripts/stop.py --port 6000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.options import add_port_option


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``stop.py``."""
    parser = argparse.ArgumentParser(
        prog="stop.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_port_option(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Stop the server on --port; no server is no error."""
    from scripts.lib.server import clean_up, find_server, stop_server

    server = find_server(args.port)
    if server is None:
        clean_up(args.port)
        say(f"no server of this project runs on port {args.port}")
        return 0
    stop_server(server)
    say(f"stopped the server on port {args.port}; its logs are in {server.folder}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
