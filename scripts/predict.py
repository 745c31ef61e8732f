#!/usr/bin/env python3
"""Send pictures to the server; a line a picture: path, label, probability.

    python3 scripts/predict.py dog.jpg
    python3 scripts/predict.py holiday/ --topk 3
    python3 scripts/predict.py *.jpg --json

A file that fails is reported and doesn't end the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, Progress, say
from scripts.lib.environment import run
from scripts.lib.options import add_port_option, positive


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``predict.py``."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="picture file, or a folder of pictures")
    add("--topk", type=positive, metavar="N", help="print the N best labels of each picture (default 1)")
    add("--json", action="store_true", help="print a JSON object a line, with the path")
    add("--concurrency", type=positive, default=4, metavar="N", help="requests at once (default 4)")
    add_port_option(parser)
    add("--url", metavar="URL", help="inference address of another server, e.g. http://host:5000")
    return parser


def main(args: argparse.Namespace) -> int:
    """Predict; 0 if every picture got a label, else 1."""
    from scripts.lib.client import Client, inference_token
    from scripts.lib.training.dataset import picture_files

    paths: list[Path] = []
    for image in args.images:
        found = picture_files(image) if image.is_dir() else [image]
        if not found:
            raise CommandError(f"the folder {image} holds no pictures; expected files like .jpg, .png or .webp")
        paths += found
    client = Client(args.url or f"http://127.0.0.1:{args.port}", inference_token(args.port))
    progress = Progress("predicting", len(paths)) if len(paths) > 1 else None
    failed = 0
    for result in client.predict_files(paths, args.topk, args.concurrency):
        if result.answer is None:
            failed += 1
            print(f"error: {result.path}: {result.error}", file=sys.stderr, flush=True)
            if args.json:
                say(json.dumps({"path": str(result.path), "error": result.error}, ensure_ascii=False))
        elif args.json:
            say(json.dumps({"path": str(result.path), **result.answer}, ensure_ascii=False))
        else:
            best = result.answer.get("top", [result.answer])
            for prediction in best:
                say(f"{result.path}\t{prediction['label']}\t{prediction['probability']:.4f}")
        if progress:
            progress.advance()
    if failed:
        raise CommandError(f"{failed} of {len(paths)} pictures got no label; the lines above say why")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
