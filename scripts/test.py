#!/usr/bin/env python3
"""Run the tests, several at a time.

python3 scripts/test.py                  # what proves the product on a laptop, 6 minutes on two cores
python3 scripts/test.py tests/unit       # without a server, at each save
python3 scripts/test.py --all            # everything, with coverage: images, nginx, Prometheus, a browser, faults
python3 scripts/test.py tests/unit/test_topk.py -x    # arguments go to pytest

A test whose program isn't installed is skipped, and says which; where CI is set in the environment, it fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.paths import ROOT

MOST_JOBS = 4
"""Each may have a server with two workers, 2 GB."""
NOTHING_COLLECTED = 5
"""Pytest's exit status."""


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Pass on what it doesn't know, in its order: ``argparse.REMAINDER`` can't begin with an option."""
        known, rest = self.parse_known_args(args, namespace)
        known.pytest = rest
        return known


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``test.py``."""
    parser = _Parser(
        prog="test.py",
        usage="%(prog)s [--all] [--jobs N] [ARGUMENT of pytest …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --co is pytest's
    )
    parser.add_argument("--all", action="store_true", help="also what is slow or needs programs; measures coverage")
    parser.add_argument("--jobs", type=int, metavar="N", help=f"at a time (default the cores, at most {MOST_JOBS})")
    return parser


def passes(everything: bool, jobs: int, arguments: list[str]) -> list[list[str]]:
    """Pytest's arguments for each of its runs: what goes side by side, then what measures and is alone.

    A file or a test that is named runs by itself, whatever its marks are.
    """
    if any(".py" in argument for argument in arguments):
        return [arguments]
    folders = [argument for argument in arguments if (ROOT / argument).is_dir()] or ["tests"]
    options = [argument for argument in arguments if argument not in folders] or ["--durations=15"]
    tier = "" if everything else "not slow and "
    files = _with_alone(folders)
    alone = [*files, *options, "-m", f"{tier}alone"]
    beside = [*folders, *options, "-m", f"{tier}not alone"]
    beside += ["-n", str(jobs), "--no-loadscope-reorder"]
    if everything:
        beside += ["--cov", "--cov-fail-under=0", "--cov-report="]
        alone += ["--cov", "--cov-append", "--cov-report=term-missing:skip-covered"]
    return [beside, alone] if files else [beside]


def _with_alone(folders: Sequence[str]) -> list[str]:
    """The files that have a test of that mark: importing the others once more takes ten seconds."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.alone" in file.read_text(encoding="utf-8")]


def main(args: argparse.Namespace) -> int:
    """Run pytest; 0 if everything passed, and with ``--all`` enough is covered."""
    import subprocess
    import time

    from scripts.lib.console import duration
    from scripts.lib.machine import usable_cores

    start = time.monotonic()
    runs = passes(args.all, args.jobs or min(usable_cores(), MOST_JOBS), args.pytest)
    statuses = [
        subprocess.run([sys.executable, "-m", "pytest", *run], cwd=ROOT, check=False).returncode for run in runs
    ]
    ran = [status for status in statuses if status != NOTHING_COLLECTED]
    say(f"tests took {duration(time.monotonic() - start)}")
    return max(ran, default=NOTHING_COLLECTED)


if __name__ == "__main__":
    run(build_parser, main, development=True)
