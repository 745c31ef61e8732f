#!/usr/bin/env python3
"""Compare this project's server with others, on the same weights and pictures.

    python3 scripts/benchmark.py --picture images/dog.jpg --out runs/benchmark

Starts each contender itself, in turn and several times, on free ports: seconds to READY, memory,
requests/s, latency and processor time a request. The first is compared with each of the others.
Close other programs: they take processor time from all.

Contenders, NAME or NAME:N with N workers:
  ours, stock        this project's server, TorchServe's image_classifier example: one worker
  ours-default,      the same two with as many workers as each takes by itself
  stock-default
  bare               no server: processes that decode, resize and infer in a loop, as ours computes
  fastapi, litserve, eager PyTorch behind these, as their documentation shows; bare and these take
  bentoml            one worker a core, with N workers each has its share of the cores as threads
  flask              the same, one process with a thread a request
The packages of the last four are installed into the cache at the first use. --runtime, --precision,
--pictures and --labels concern ours and bare.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.benchmarking.names import parse_contenders
from scripts.lib.console import say
from scripts.lib.environment import java_home, run
from scripts.lib.options import ARCHITECTURES, add_runtime_options, positive

if TYPE_CHECKING:
    from scripts.lib.benchmarking.subject import Subject

UNTRAINED = "untrained"


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


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(float(part) for part in text.split(","))
    if not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"{text} is out of range, expected requests a second above 0")
    if len(set(rates)) < len(rates):
        raise argparse.ArgumentTypeError(f"{text} names a rate twice, expected different ones")
    return rates


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``benchmark.py``."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--weights",
        default="auto",
        metavar="imagenet|bundled|auto|untrained|FOLDER",
        help="the model of all contenders, as for serve.py (default auto); untrained: fresh weights of --arch with "
        "1000 classes, for timing alone where nothing better is at hand",
    )
    add(
        "--arch",
        default="densenet121",
        choices=ARCHITECTURES,
        help="of the ImageNet or untrained weights (default densenet121)",
    )
    add(
        "--picture",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="pictures to send, in turn (default: a generated JPEG of 1546 × 1213 px)",
    )
    add("--repeats", type=_repeats, default=5, metavar="N", help="starts of each contender, at least 2 (default 5)")
    add(
        "--warm-up",
        type=positive,
        default=20,
        metavar="N",
        help="requests a worker before any is measured (default 20)",
    )
    add("--requests", type=positive, default=60, metavar="N", help="requests at each load (default 60)")
    add(
        "--concurrency",
        type=_concurrencies,
        default=(1, 2, 4),
        metavar="N,N,…",
        help="connections that send at a time, a closed loop each (default 1,2,4)",
    )
    add(
        "--rate",
        type=_rates,
        default=(),
        metavar="R,R,…",
        help="requests a second that arrive evenly, an open loop each; a latency counts from the time at which its "
        "request was due (default: none)",
    )
    add(
        "--contenders",
        type=parse_contenders,
        default=parse_contenders("ours,stock"),
        metavar="NAME,NAME,…",
        help="see above (default ours,stock)",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where benchmark.json, benchmark.md and its plots go (default: only printed)",
    )
    add_runtime_options(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write the report."""
    import tempfile

    from scripts.lib.benchmarking.measure import Plan
    from scripts.lib.benchmarking.photographs import GENERATED_PX, generated
    from scripts.lib.benchmarking.session import read_picture, run_benchmark, write_report

    pictures = [read_picture(path) for path in args.picture] or [generated(*GENERATED_PX)]
    home = java_home()
    plan = Plan(args.requests, args.concurrency, args.rate, args.warm_up)
    with tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
        report = run_benchmark(_subject(args, Path(folder)), args.contenders, pictures, plan, args.repeats, home)
    say(write_report(report, args.out))
    if args.out:
        say(f"written: {args.out / 'benchmark.md'}, its plots and {args.out / 'benchmark.json'}")
    return 0


def _subject(args: argparse.Namespace, folder: Path) -> Subject:
    """The model that the options name; untrained weights go into ``folder``."""
    from scripts.lib.benchmarking.subject import trained, untrained
    from scripts.lib.precision import Wanted
    from scripts.lib.weights import resolve_weights

    wanted = Wanted.of(args)
    if args.weights == UNTRAINED:
        return untrained(args.arch, folder, wanted)
    return trained(resolve_weights(args.weights, args.arch), wanted)


if __name__ == "__main__":
    run(build_parser, main)
