#!/usr/bin/env python3
"""Replace the tokens of a server that was started with --token by new ones; the old ones are refused at once.

    python3 scripts/rotate_tokens.py                 # the inference and the management token
    python3 scripts/rotate_tokens.py management

They expire an hour after they were made, so that a server that is used longer needs this every hour. The API
token, which allows it, stays the same until the server is started anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, say
from scripts.lib.environment import run
from scripts.lib.options import add_port_option

KINDS = ("inference", "management")


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``rotate_tokens.py``."""
    parser = argparse.ArgumentParser(
        prog="rotate_tokens.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="?", choices=KINDS, help="which token (default: both)")
    add_port_option(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Ask the server on --port for new tokens."""
    from scripts.lib.server import TOKENS, find_server

    server = find_server(args.port)
    if server is None:
        raise CommandError(f"no server of this project runs on port {args.port}; serve.py --token starts one")
    if not server.token:
        raise CommandError(f"the server on port {args.port} asks for no tokens; serve.py --token starts one that does")
    kinds = [args.kind] if args.kind else KINDS
    for kind in kinds:
        server.rotate_token(kind)
    say(f"rotated: {', '.join(kinds)}; the new tokens are in {server.folder / TOKENS}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
