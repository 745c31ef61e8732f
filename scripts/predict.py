#!/usr/bin/env python3
"""Send pictures to the server; a line a picture: path, label, probability.

    python3 scripts/predict.py dog.jpg
    python3 scripts/predict.py holiday/ "scans/**/*.tif" list.csv --topk 3
    find . -name "*.jpg" | python3 scripts/predict.py - --json
    python3 scripts/predict.py holiday/ --output holiday.csv --resume
    python3 scripts/predict.py holiday/ --sheet holiday.html

A file that fails is reported and doesn't end the others; the exit code is then 1. While the server
is busy or restarts, pictures wait; if it stays away, or on Ctrl-C, --resume goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, Progress, complain, is_terminal, say, tell
from scripts.lib.environment import run
from scripts.lib.options import add_port_option, positive


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``predict.py``."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="picture file; folder, with all pictures below it; pattern in quotes; CSV file with paths in its first "
        "column, or in one called path; - for paths on standard input, one a line",
    )
    add("--topk", type=positive, metavar="N", help="the N best labels of each picture (default 1)")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="write a JSON object a line, errors too")
    style.add_argument("--csv", action="store_true", help="write CSV: path, rank, label, index, probability, error")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="write into a file instead; the format is that of its name (.jsonl, .csv) unless a flag says",
    )
    add("--resume", action="store_true", help="go on with --output FILE: leave out the pictures that it holds")
    add("--sheet", type=Path, metavar="FILE", help="write a page of thumbnails, sorted by label (HTML), too")
    add(
        "--concurrency",
        type=positive,
        default=8,
        metavar="N",
        help="requests at once; two a worker keep the server busy (default 8)",
    )
    add(
        "--patience",
        type=positive,
        default=120,
        metavar="SECONDS",
        help="how long a server that was there may be busy or away before it counts as gone (default 120)",
    )
    add_port_option(parser)
    add("--url", metavar="URL", help="inference address of another server, e.g. http://host:5000")
    return parser


def main(args: argparse.Namespace) -> int:
    """Predict; 0 if every picture got a label, else 1."""
    from scripts.client import DenseNetClient
    from scripts.lib.pictures import count_pictures, picture_paths, told_left_out
    from scripts.lib.predictions import CSV, JSON_LINES, PredictionFile, PredictionStream, format_of
    from scripts.lib.server import inference_token

    if args.resume and not args.output:
        build_parser().error("--resume goes on with a file; name it with --output")
    form = JSON_LINES if args.json else CSV if args.csv else format_of(args.output)
    total = count_pictures(args.pictures)
    left_out: Counter[str] = Counter()
    url = args.url or f"http://127.0.0.1:{args.port}"
    with DenseNetClient(url, inference_token(args.port), patience=args.patience) as client:
        client.ping()
        with (
            PredictionFile(args.output, form, args.topk, args.resume)
            if args.output
            else PredictionStream(sys.stdout, form, keep=args.sheet is not None)
        ) as output:
            if output.pictures:
                say(f"{args.output} holds {output.pictures} pictures already; going on with the others")
                total = None if total is None else max(0, total - output.pictures)
            # lines that appear on the same terminal are progress enough
            seen = total == 1 or (not args.output and is_terminal(sys.stdout))
            progress = None if seen else Progress("predicting", total, " pictures", rate=True)
            paths = (path for path in picture_paths(args.pictures, left_out) if path not in output.done)
            try:
                for result in client.predict_many(paths, args.topk, args.concurrency):
                    if result.error:
                        complain(f"{result.picture}: {result.error}")
                    output.write(result)
                    if progress:
                        progress.advance()
            except (CommandError, KeyboardInterrupt):
                if args.output:
                    tell(f"{output}; the same command with --resume goes on from there")
                raise
            if progress:
                progress.finish()
            if left_out:
                tell(told_left_out(left_out))
            if args.output:
                say(str(output))
            if args.sheet:
                from scripts.lib.reporting.sheet import write_sheet

                thumbnails = Progress("thumbnails", output.pictures)
                write_sheet(args.sheet, output.rows(), thumbnails.advance)
                say(f"{args.sheet}: {output.pictures} pictures to look at")
    if output.failed:
        where = "the lines above, or the file, say" if args.output else "the lines above say"
        raise CommandError(f"{output.failed} of {output.pictures} pictures got no label; {where} why")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
