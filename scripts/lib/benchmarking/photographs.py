"""Pictures of a wanted size: a generated one, or a file of the user's that is resized."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from handler.errors import RequestError
from handler.images import decode
from scripts.lib.benchmarking.contenders import Picture
from scripts.lib.console import CommandError
from scripts.lib.training.dataset import MAX_PIXELS

GENERATED_PX = (1546, 1213)
"""Width and height of the picture that a server is sent when none is given, those of pytorch/hub's ``dog.jpg``."""
QUALITY = 90
"""Of the JPEGs that are written, 1 to 95."""
_ROWS = 256
"""Rows that get their grain at a time: that of 48 megapixels at once would take 400 MB."""


def read_photograph(path: Path) -> Picture:
    """A picture file.

    Raises:
        CommandError: it can't be read, or isn't a picture.
    """
    try:
        content = path.read_bytes()
        return Picture(path.name, content, *decode(content, MAX_PIXELS).size)
    except OSError as error:
        raise CommandError(f"--picture {path}: {error.strerror or error}; give the path of a picture") from None
    except RequestError as error:
        raise CommandError(f"--picture {path}: {error}") from None


def generated(width: int, height: int) -> Picture:
    """A JPEG about as detailed as a photograph (smooth shapes and grain); the same each time.

    Args:
        width, height: in px.
    """
    noise = np.random.default_rng(0)
    coarse = Image.fromarray(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.array(coarse)  # (height, width, 3) uint8
    for top in range(0, height, _ROWS):
        rows = pixels[top : top + _ROWS]
        rows[:] = np.clip(rows + noise.normal(0, 6, (len(rows), width, 1)), 0, 255)
    return _jpeg(Image.fromarray(pixels), "generated")


def of_size(megapixels: float, source: Picture | None) -> Picture:
    """A JPEG of about ``megapixels`` million pixels.

    Args:
        megapixels: width times height, in millions.
        source: is resized, its proportions kept; None for a generated picture of 4:3.
    """
    ratio = source.width / source.height if source else 4 / 3
    width = max(1, round(math.sqrt(megapixels * 1e6 * ratio)))
    height = max(1, round(width / ratio))
    if source is None:
        return generated(width, height)
    image = decode(source.content, MAX_PIXELS)
    return _jpeg(image.resize((width, height), Image.Resampling.LANCZOS), Path(source.name).stem)


def _jpeg(image: Image.Image, name: str) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return Picture(f"{name}.jpg", buffer.getvalue(), *image.size)
