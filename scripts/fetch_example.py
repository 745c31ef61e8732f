#!/usr/bin/env python3
"""Fetch the picture of a Samoyed that the examples use, and check that it is the right one.

    python3 scripts/fetch_example.py
    curl -T images/dog.jpg http://127.0.0.1:5000/predictions/densenet

It comes from pytorch/hub on GitHub. Without the internet any photograph of a dog will do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, say
from scripts.lib.environment import run

URL = "https://github.com/pytorch/hub/raw/master/images/dog.jpg"
SHA256 = "f3f87bb8ab3c26c7ecfd3ac60421d7f32b0503d1d6c5baf8bac42ed93d86351a"


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``fetch_example.py``."""
    parser = argparse.ArgumentParser(
        prog="fetch_example.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--to",
        type=Path,
        default=Path("images/dog.jpg"),
        metavar="FILE",
        help="where the picture goes (default images/dog.jpg)",
    )
    add("--url", default=URL, help=f"another place that has it, http://, https:// or file:// (default {URL})")
    return parser


def main(args: argparse.Namespace) -> int:
    """Fetch the picture, unless it is there."""
    from scripts.lib.download import download, has_hash

    if args.to.exists() and not has_hash(args.to, SHA256):
        raise CommandError(f"{args.to} exists and isn't the example picture; it stays: give another place with --to")
    download(
        [args.url],
        args.to,
        SHA256,
        what="the example picture",
        instead="use any photograph of a dog, or give --url file:///… or a mirror",
    )
    say(f"{args.to} is there; send it with: curl -T {args.to} http://127.0.0.1:5000/predictions/densenet")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
