#!/usr/bin/env python3
"""Say what is served, by how many workers, READY or not.

    python3 scripts/status.py
    python3 scripts/status.py --json

Exit code 0 only when at least one worker is READY: usable as a health check, also of a server whose queue is full.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, say
from scripts.lib.environment import run
from scripts.lib.options import add_management_options

CARD_TIMEOUT_S = 2
"""A worker tells the card when its turn comes; whether workers are READY doesn't depend on it."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``status.py``."""
    parser = argparse.ArgumentParser(
        prog="status.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_management_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the status; 0 if a worker is READY, else 1."""
    from contextlib import suppress
    from dataclasses import asdict

    from scripts.lib.server import connect

    management = connect(args.port, args.url)
    status = management.status()
    card = None
    if status.ready:
        with suppress(CommandError):  # busy: the queue is full, or longer than we wait
            card = management.card(timeout=CARD_TIMEOUT_S)
    if args.json:
        say(json.dumps({**asdict(status), "ready": status.ready, "card": card}))
        return 0 if status.ready else 1
    model = f"{card['name']} ({card['architecture']['name']}, {card['num_classes']} classes)" if card else "densenet"
    verdict = "READY" if status.ready else "NOT READY"
    say(f"{verdict}: {model}, version {status.version}, {status.ready} of {len(status.workers)} workers READY")
    for worker in status.workers:
        # TorchServe measures the memory once a minute, and says 0 before
        memory = f", {worker.memory / 1e6:.0f} MB" if worker.memory else ""
        say(f"  worker {worker.id}: {worker.status}, process {worker.pid}{memory}")
    for other in management.versions():
        if other.version != status.version:
            say(f"  beside it version {other.version}, {other.ready} of {len(other.workers)} workers READY")
    return 0 if status.ready else 1


if __name__ == "__main__":
    run(build_parser, main)
