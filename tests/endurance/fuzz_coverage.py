#!/usr/bin/env python3
"""Fuzz the handler's parsing and decoding, guided by coverage (atheris), in this process alone.

python3 tests/endurance/fuzz_coverage.py                    # 200,000 inputs, some minutes
python3 tests/endurance/fuzz_coverage.py --inputs 1000000 --corpus FOLDER

What raises anything but a RequestError, or hangs for 20 s, ends it with a traceback, and the input
lies in the corpus folder as crash-…; make it a fixture in tests/support/hostile/http.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.lib.environment import run
from scripts.lib.options import positive
from tests.endurance.command import new_parser


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``fuzz_coverage.py``."""
    parser = new_parser(__file__, __doc__)
    add = parser.add_argument
    add("--inputs", type=positive, default=200_000, metavar="N", help="how many (default 200000)")
    add("--seed", type=int, default=1, help="of the random choices (default 1)")
    add("--corpus", type=Path, metavar="FOLDER", help="where inputs are kept (default: a temporary folder)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Fuzz until so many inputs were tried; libFuzzer ends the process with its own exit code."""
    import json
    import tempfile

    import atheris

    with atheris.instrument_imports(include=["handler", "PIL"]):
        from handler.errors import RequestError
        from handler.images import decode_reduced
        from handler.ordinary import ordinary
        from handler.payload import parse

    from tests.support.hostile.http import samples

    def one(data: bytes) -> None:
        ordinary(data)
        try:
            row: dict[str, Any] = {"body": json.loads(data)}
        except (ValueError, RecursionError):
            row = {"body": bytearray(data)}
        try:
            for picture in parse(row, {}, 10, 4).pictures:
                decode_reduced(picture, 1_000_000, 64)
        except RequestError:
            pass

    corpus = args.corpus or Path(tempfile.mkdtemp(prefix="densenet-corpus-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples()):
        if len(sample) < 10_000:
            (corpus / f"sample-{number}").write_bytes(sample)
    options = [f"-runs={args.inputs}", f"-seed={args.seed}", "-max_len=10000", "-timeout=20", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus}/", str(corpus)], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    run(build_parser, main, development=True)
