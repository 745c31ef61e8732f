#!/usr/bin/env python3
"""Write the software bill of materials of what runs, as CycloneDX JSON, for scanners.

    python3 scripts/sbom.py --output sbom.json

Python's packages, Java, and the libraries inside TorchServe's jar. The same environment gives the same file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.paths import ROOT


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``sbom.py``."""
    parser = argparse.ArgumentParser(
        prog="sbom.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("sbom.json"), metavar="FILE", help="what to write (default sbom.json)"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the file."""
    from scripts.lib.bom import bill_of_materials
    from scripts.lib.model_folder import json_bytes, write_atomically

    bill = bill_of_materials(ROOT)
    write_atomically(args.output, json_bytes(bill))
    say(f"{args.output}: {len(bill['components'])} components")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
