#!/usr/bin/env python3
"""Measure how the cost of a request grows: with network, batch, picture, workers and concurrency.

    python3 scripts/measure_costs.py --out runs/costs

Times the network alone on one core, the reading of pictures, and this project's server, which it
starts itself on free ports and loads from this machine. The networks of 1000 classes have random
weights, which cost as much as trained ones. Computes on processor cores, not on a GPU. Close other
programs: they take processor time from what is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import java_home, run
from scripts.lib.options import positive


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``measure_costs.py``."""
    parser = argparse.ArgumentParser(
        prog="measure_costs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where costs.json, costs.md and the plots (PNG) go; made if missing",
    )
    add(
        "--picture",
        type=Path,
        metavar="FILE",
        help="sent to the server as it is, and resized to 0.05 … 48 megapixels for the cost of reading it "
        "(default: a generated JPEG, 1546 × 1213 px for the server)",
    )
    add("--repeats", type=positive, default=3, metavar="N", help="measurements of each point, interleaved (default 3)")
    add("--quick", action="store_true", help="a few points of each curve: to see that it runs")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure, write the report, print its tables."""
    # before torch is imported, here and in the workers: the curves are of processor cores
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from scripts.lib.benchmarking.cost_report import write_costs
    from scripts.lib.benchmarking.costs import FULL, QUICK, measure_costs
    from scripts.lib.benchmarking.photographs import read_photograph

    photograph = read_photograph(args.picture) if args.picture else None
    home = java_home()
    costs = measure_costs(QUICK if args.quick else FULL, photograph, args.repeats, home)
    say(write_costs(costs, args.out))
    say(f"written: {args.out}/costs.json, costs.md and the plots")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
