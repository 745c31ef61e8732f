"""A small labelled data set of real pictures: random views of three photographs, a class each."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from tests.support.pictures.golden import PACKAGED


def write_scenes(folder: Path, per_class: int = 24, side: int = 72, seed: int = 0) -> Path:
    """``folder/<photograph>/<n>.png``: ``per_class`` random square views of each, ``side`` px."""
    choose = random.Random(seed)
    for golden in PACKAGED:
        target = folder / golden.name
        target.mkdir(parents=True)
        with Image.open(golden.path) as opened:
            photograph = opened.convert("RGB")
        width, height = photograph.size
        for number in range(per_class):
            size = choose.randint(min(width, height) // 3, min(width, height) * 2 // 3)
            left, top = choose.randint(0, width - size), choose.randint(0, height - size)
            view = photograph.crop((left, top, left + size, top + size)).resize((side, side))
            view.save(target / f"{number:03}.png")
    return folder
