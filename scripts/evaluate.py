#!/usr/bin/env python3
"""Measure a model on labelled pictures: top-1, top-5, per-class accuracy, calibration, confusion matrix.

    python3 scripts/evaluate.py pets/ --weights runs/pets
    python3 scripts/evaluate.py pets/ --url http://127.0.0.1:5000 --weights runs/pets

DATA is what train.py takes: folders with a folder per class, or CLASS=FOLDER. With --url the
pictures go through the running server, whose labels must be those of --weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.options import ARCHITECTURES


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``evaluate.py``."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", nargs="+", metavar="DATA", help="folder with a folder per class, or CLASS=FOLDER")
    add("--labels", type=Path, metavar="FILE", help="JSON, class folder to label (default: the folder's name)")
    add("--weights", default="bundled", metavar="imagenet|bundled|FOLDER", help="the model (default bundled)")
    add("--arch", default="densenet121", choices=ARCHITECTURES, help="of --weights imagenet")
    add("--url", metavar="URL", help="ask this server instead of running the model here")
    add("--json", type=Path, metavar="FILE", help="write all figures and every prediction as JSON")
    add("--report", type=Path, metavar="FILE", help="write a page to look at: figures, matrix, mistakes (HTML)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from scripts.lib.evaluation import evaluate
    from scripts.lib.model_folder import json_bytes, read_json, write_atomically
    from scripts.lib.training.dataset import find_pictures
    from scripts.lib.weights import resolve_weights

    model = resolve_weights(args.weights, args.arch)
    pictures = find_pictures(args.data, read_json(args.labels) if args.labels else None)
    evaluation = evaluate(model, pictures, args.url)
    total = evaluation.total()
    for label, figure in sorted(total["per_class"].items(), key=lambda item: float(item[1]["top1"])):
        say(f"  {figure['top1']:.3f}  {label} ({figure['pictures']} pictures)")
    for source, figure in evaluation.sources().items():
        say(f"{source}: top-1 {figure['top1']:.4f}, top-5 {figure['top5']:.4f}, {figure['pictures']} pictures")
    low, high = total["top1_95"]
    say(
        f"{model.card.name}: top-1 {total['top1']:.4f} (95 %: {low:.4f} to {high:.4f}), top-5 {total['top5']:.4f}, "
        f"ECE {total['ece']:.4f}, {total['pictures']} pictures, {evaluation.failed} failed"
    )
    if args.json:
        write_atomically(args.json, json_bytes(evaluation.to_dict()))
    if args.report:
        from scripts.lib.reporting.page import write_report

        write_report(args.report, evaluation)
    return 0


if __name__ == "__main__":
    run(build_parser, main)
