#!/usr/bin/env python3
"""Train a DenseNet on folders of labelled pictures.

    python3 scripts/train.py pets/ --out runs/pets
    python3 scripts/serve.py --weights runs/pets

DATA is a folder with one folder of pictures per class, or CLASS=FOLDER (all pictures below FOLDER
are of that class); several are put together. The result is a folder with weights, labels, card,
metrics and a report to look at (report.html); serve.py and build_archive.py take it as --weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run


def _pair(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    pair = int(first), int(last or first)
    if min(pair) < 32:
        raise ValueError
    return pair


def _blocks(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError
    return share


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``train.py``."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", nargs="*", metavar="DATA", help="folder with a folder per class, or CLASS=FOLDER")
    add("--dataset", choices=["oxford-pets"], help="a public data set, downloaded once: Oxford-IIIT Pet, 800 MB")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the model goes")
    add("--labels", type=Path, metavar="FILE", help="JSON, class folder to label (default: the folder's name)")
    add("--name", help="the model's name on its card (default: the name of --out)")
    add("--resume", action="store_true", help="go on after the last complete epoch of the same command")
    net = parser.add_argument_group("network")
    net.add_argument(
        "--arch",
        default="compact",
        choices=["compact", "densenet121", "densenet161", "densenet169", "densenet201"],
        help="torchvision's DenseNets, or compact: by --growth-rate, --blocks and --init-features (default)",
    )
    net.add_argument("--growth-rate", type=int, default=48, metavar="N", help="channels a layer adds (default 48)")
    net.add_argument("--blocks", type=_blocks, default=(2, 4, 10, 8), metavar="N,N,…", help="layers (default 2,4,10,8)")
    net.add_argument("--init-features", type=int, default=48, metavar="N", help="first channels (default 48)")
    net.add_argument("--resize", type=int, metavar="PX", help="shorter side before the crop (default crop × 8/7)")
    net.add_argument("--crop", type=int, default=128, metavar="PX", help="side of the network's input (default 128)")
    net.add_argument(
        "--start",
        default="none",
        metavar="none|imagenet|FILE",
        help="initial weights: none, torchvision's ImageNet weights of --arch, or a weights file that fits, "
        "with or without classifier (default none)",
    )
    net.add_argument(
        "--train", default="all", choices=["all", "classifier"], help="all layers, or the last on frozen features"
    )
    net.add_argument("--eps", type=float, default=1e-5, metavar="X", help="batch-norm epsilon (default 1e-5)")
    net.add_argument("--half", action="store_true", help="store weights as float16, half the size")
    how = parser.add_argument_group("recipe")
    how.add_argument("--epochs", type=int, default=30, metavar="N", help="passes over the pictures (default 30)")
    how.add_argument("--batch", type=int, default=64, metavar="N", help="pictures a step (default 64)")
    how.add_argument("--rate", type=float, default=0.1, metavar="X", help="peak learning rate (default 0.1)")
    how.add_argument("--warmup", type=float, default=1, metavar="N", help="epochs to the peak (default 1)")
    how.add_argument("--weight-decay", type=float, default=5e-5, metavar="X", help="default 5e-5")
    how.add_argument("--label-smoothing", type=float, default=0.05, metavar="X", help="0 to 1 (default 0.05)")
    how.add_argument("--ema", type=float, default=0.998, metavar="X", help="decay of the averaged weights a step")
    how.add_argument(
        "--train-crop", type=_pair, metavar="PX[-PX]", help="training crop, or from-to over the epochs (default crop)"
    )
    how.add_argument("--min-scale", type=float, default=0.3, metavar="X", help="least area a crop keeps (default 0.3)")
    how.add_argument(
        "--balance", type=float, default=0.0, metavar="X", help="0: every picture as often; 1: every class (default 0)"
    )
    how.add_argument(
        "--mixup", type=_share, default=0.0, metavar="X", help="share of pictures blended with another (default 0)"
    )
    how.add_argument(
        "--epoch-pictures", type=int, default=0, metavar="N", help="pictures an epoch; 0: all of them (default 0)"
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of split, order and augmentation (default 0)")
    how.add_argument("--val", type=float, default=0.1, metavar="X", help="share for validation (default 0.1)")
    how.add_argument("--test", type=float, default=0.1, metavar="X", help="share for the final test (default 0.1)")
    teach = parser.add_argument_group("distillation")
    teach.add_argument("--teacher", type=Path, metavar="FOLDER", help="a model of this project with the same labels")
    teach.add_argument("--distill", type=float, default=0.7, metavar="X", help="weight of its logits (default 0.7)")
    teach.add_argument("--distill-temperature", type=float, default=2, metavar="T", help="default 2")
    teach.add_argument("--feature-weight", type=float, default=2, metavar="X", help="weight of its features, default 2")
    teach.add_argument(
        "--teacher-crop",
        type=int,
        default=0,
        metavar="PX",
        help="the teacher sees each view itself, at this size; 0: every picture once, whole (default 0)",
    )
    card = parser.add_argument_group("card")
    card.add_argument("--about", default="", metavar="TEXT", help="what the pictures are, for the card")
    card.add_argument("--licence", default="", metavar="TEXT", help="terms of the weights, for the card")
    return parser


def main(args: argparse.Namespace) -> int:
    """Train, measure, write the model folder."""
    from scripts.lib.training.session import train

    folder = train(args)
    say(f"done: {folder.path}; serve it with: python3 scripts/serve.py --weights {folder.path}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
