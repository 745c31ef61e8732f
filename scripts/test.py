#!/usr/bin/env python3
"""Run all the tests that this machine can run.

python3 scripts/test.py                  # everything, with coverage
python3 scripts/test.py tests/unit -x    # arguments go to pytest
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.environment import run
from scripts.lib.paths import ROOT


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``test.py``."""
    parser = argparse.ArgumentParser(
        prog="test.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pytest", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="for pytest")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run pytest; without arguments everything, and the coverage must reach the mark."""
    import os
    import subprocess

    options = args.pytest or ["tests", "--cov", "--cov-report=term-missing:skip-covered", "--durations=15"]
    environment = {**os.environ, "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml")}
    return subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    run(build_parser, main, development=True)
