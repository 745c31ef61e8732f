#!/usr/bin/env python3
"""Train a version of the bundled model again: a teacher, then the model in one or more sittings.

    python3 scripts/reproduce.py DATA --backbone densenet169-features.pt --out runs

DATA holds the folders oxford-pets and imagewoof (a folder per breed each) and other (pictures of
what is neither cat nor dog). Version 2 is the one that is bundled; version 3 follows its teacher
more closely and is to replace it. It takes hours. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, say
from scripts.lib.environment import run
from scripts.lib.model_folder import CARD, WEIGHTS
from scripts.lib.paths import CONFIG, ROOT

SPLIT = ("--val", "0.05", "--test", "0.1")
TEACHER = (
    *("--arch", "densenet169", "--eps", "1.001e-5", "--train", "classifier"),
    *("--resize", "192", "--crop", "192", *SPLIT, "--half"),
)
FIRST = ("--resize", "146", "--crop", "128", "--train-crop", "80-112", "--epochs", "22", *SPLIT, "--half")
SECOND = (
    *("--resize", "146", "--crop", "128", "--train-crop", "96-128", "--epochs", "28", "--rate", "0.08"),
    *("--balance", "0.5", *SPLIT, "--half"),
)
THIRD = (
    *("--resize", "192", "--crop", "176", "--train-crop", "160", "--min-scale", "0.4", "--epochs", "6"),
    *("--rate", "0.03", "--warmup", "0.3", "--balance", "0.5", *SPLIT, "--half", "--name", "densenet-pets"),
)
# the teacher sees the student's very views, blended ones too, and its answers are all that counts
# (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022)
PATIENT = (
    *("--growth-rate", "48", "--blocks", "2,4,12,14", "--resize", "160", "--crop", "144", "--train-crop", "96-128"),
    *("--epochs", "330", "--epoch-pictures", "4096", "--warmup", "4", "--weight-decay", "1e-4", "--ema", "0.999"),
    *("--min-scale", "0.25", "--balance", "0.5", "--mixup", "0.5"),
    *("--teacher-crop", "144", "--distill", "1", *SPLIT, "--half"),
)


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``reproduce.py``."""
    parser = argparse.ArgumentParser(
        prog="reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with oxford-pets, imagewoof and other")
    parser.add_argument(
        "--backbone",
        default="imagenet",
        metavar="imagenet|FILE",
        help="weights of the teacher's DenseNet-169: torchvision's, or a file (default imagenet)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the models go")
    parser.add_argument("--version", choices=["2", "3"], default="2", help="of the bundled model (default 2)")
    parser.add_argument(
        "--quick", action="store_true", help="one epoch a sitting: to see that all is there before the hours are spent"
    )
    return parser


def stages(data: Path, backbone: str, out: Path, quick: bool = False, version: str = "2") -> dict[Path, list[str]]:
    """The arguments of ``train.py`` for each model, in order."""
    pictures = [str(data / "oxford-pets"), str(data / "imagewoof"), f"other={data / 'other'}"]
    pictures += ["--labels", str(CONFIG / "bundled-labels.json")]
    teacher, first, second, third = (out / name for name in ("teacher", "first", "second", "bundled"))
    short = ["--epochs", "1"] if quick else []
    taught = [*pictures, "--teacher", str(teacher)]
    teaching = {teacher: [*pictures, *TEACHER, "--start", backbone, "--out", str(teacher)]}
    if version == "3":
        few = ["--epoch-pictures", "128"] if quick else []
        return teaching | {out / "patient": [*taught, *PATIENT, "--out", str(out / "patient"), *short, *few]}
    return teaching | {
        first: [*taught, *FIRST, "--out", str(first), *short],
        second: [*taught, *SECOND, "--start", str(first / WEIGHTS), "--out", str(second), *short],
        third: [*taught, *THIRD, "--start", str(second / WEIGHTS), "--out", str(third), *short],
    }


def main(args: argparse.Namespace) -> int:
    """Run what isn't there yet."""
    for folder, arguments in stages(args.data, args.backbone, args.out, args.quick, args.version).items():
        if (folder / CARD).is_file():
            say(f"{folder} is there")
            continue
        say(f"training {folder}")
        resume = ["--resume"] if (folder / "checkpoint.pt").is_file() else []
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments, *resume]
        if subprocess.run(command, check=False).returncode != 0:
            raise CommandError(f"{folder} isn't complete; the same command goes on from here")
    say(f"done: {folder} is version {args.version}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
