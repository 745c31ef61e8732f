#!/usr/bin/env python3
"""Pack weights, handler, labels and settings into model_store/densenet.mar.

    python3 scripts/build_archive.py
    python3 scripts/build_archive.py --weights runs/pets
    python3 scripts/build_archive.py --weights runs/pets --model-version 2.0    # model_store/densenet-2.0.mar

The same inputs give the same archive, byte for byte; an archive that is up to date is left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.options import add_runtime_options, add_weights_options, version_number


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``build_archive.py``."""
    parser = argparse.ArgumentParser(
        prog="build_archive.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_weights_options(parser)
    add_runtime_options(parser)
    parser.add_argument(
        "--model-version",
        type=version_number,
        default="1.0",
        metavar="N.N",
        help="by which a server tells several models apart; another than 1.0 goes to densenet-N.N.mar, which "
        "deploy.py puts beside the one that is served (default 1.0)",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Build the archive if an input changed."""
    from handler.card import sha256_of
    from scripts.lib.archive import archive_in_use, ensure_archive
    from scripts.lib.precision import Wanted
    from scripts.lib.weights import resolve_weights

    model = resolve_weights(args.weights, args.arch)
    with archive_in_use(args.model_store, args.model_version):
        archive, card, built = ensure_archive(model, args.model_store, Wanted.of(args), args.model_version)
        sha256 = sha256_of(archive)
    size, what = archive.stat().st_size / 1e6, "built" if built else "up to date"
    say(f"{archive}: {what}, {card.name}, {card.num_classes} classes, {card.runtime} {card.precision}, {size:.1f} MB")
    say(f"SHA-256 {sha256}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
