#!/usr/bin/env python3
"""Compare this project's server with TorchServe's own example, on the same weights and pictures.

    python3 scripts/benchmark.py --picture images/dog.jpg --out runs/benchmark

Starts each contender itself, in turn and several times, on free ports: seconds to READY, memory of
a worker, requests/s and latency. Contenders: ours and stock (TorchServe's image_classifier example)
with one worker each; ours-default and stock-default with as many as each takes by itself. The first
is compared with each of the others. Close other programs: they take processor time from both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import java_home, run
from scripts.lib.options import ARCHITECTURES, positive

CONTENDERS = ("ours", "stock", "ours-default", "stock-default")


def _repeats(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is out of range, expected at least 2: a single time says little")
    return number


def _concurrencies(text: str) -> tuple[int, ...]:
    numbers = tuple(positive(part) for part in text.split(","))
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text} names a number twice, expected different ones")
    return numbers


def _contenders(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown contender {unknown[0]!r}, expected {', '.join(CONTENDERS)}")
    if len(set(names)) < max(2, len(names)):
        raise argparse.ArgumentTypeError(f"{text} isn't a comparison, expected two or more different contenders")
    return names


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``benchmark.py``."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--weights",
        default="auto",
        metavar="imagenet|bundled|auto|FOLDER",
        help="the model of all contenders, as for serve.py (default auto)",
    )
    add("--arch", default="densenet121", choices=ARCHITECTURES, help="of the ImageNet weights (default densenet121)")
    add(
        "--picture",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="pictures to send, in turn (default: a generated JPEG of 1546 × 1213 px)",
    )
    add("--repeats", type=_repeats, default=5, metavar="N", help="starts of each contender, at least 2 (default 5)")
    add("--requests", type=positive, default=60, metavar="N", help="requests at each concurrency (default 60)")
    add(
        "--concurrency",
        type=_concurrencies,
        default=(1, 2, 4),
        metavar="N,N,…",
        help="connections that send at a time, a closed loop each (default 1,2,4)",
    )
    add(
        "--contenders",
        type=_contenders,
        default=("ours", "stock"),
        metavar="NAME,NAME,…",
        help=f"of {', '.join(CONTENDERS)} (default ours,stock)",
    )
    add("--out", type=Path, metavar="FOLDER", help="where benchmark.json and benchmark.md go (default: only printed)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the report."""
    from scripts.lib.benchmarking.session import generated_picture, read_picture, run_benchmark, write_report
    from scripts.lib.weights import resolve_weights

    pictures = [read_picture(path) for path in args.picture] or [generated_picture()]
    home = java_home()
    model = resolve_weights(args.weights, args.arch)
    report = run_benchmark(model, args.contenders, pictures, args.repeats, args.requests, args.concurrency, home)
    say(write_report(report, args.out))
    if args.out:
        say(f"written: {args.out / 'benchmark.json'} and {args.out / 'benchmark.md'}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
