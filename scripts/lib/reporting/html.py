"""What the pages of this package share: their templates and thumbnails."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image, ImageOps

from handler.images import decode_reduced
from scripts.lib.training.dataset import MAX_PIXELS

THUMBNAIL_PX = 144


def template(name: str) -> Template:
    """A template of this folder; what is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def thumbnail(path: Path) -> str:
    """A square JPEG of the picture's middle, as data URI.

    Raises:
        OSError, RequestError: the file can't be read, or is no picture.
    """
    image, _ = decode_reduced(path.read_bytes(), MAX_PIXELS, 2 * THUMBNAIL_PX)
    small = ImageOps.fit(image, (THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
