"""JPEG files whose end is missing: whole but for the marker, or cut off in the middle.

libjpeg fills what it doesn't find with grey and says nothing that Pillow passes on. Whether anything
is missing shows if the file is decoded with something else in the place of what may be missing.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

END = b"\xff\xd9"
_FILLER = b"".join(bytes(range(1, 201)) + bytes((0xFF, 0xD0 + number)) for number in range(8))
"""Bits and restart markers that would be decoded where something is missing."""


def load(image: Image.Image, data: bytes, enough: int | None) -> Image.Image:
    """Decode a JPEG.

    Args:
        image: as Pillow opened it, with its ``draft``; it is used up.
        data: the file.
        enough: px that both sides keep at least; None: the full size.

    Raises:
        OSError: it is broken, or cut off.
    """
    try:
        image.load()
    except OSError:
        if END in data[-2:]:
            raise
        image = _decoded(data + END, enough)
        if _ends_grey(image) or not _same(image, _decoded(data + _FILLER + END, enough)):
            raise
        return image
    if _ends_grey(image) and "progressive" not in image.info:  # whose first scan shows all of the picture
        end = data.rfind(END)
        if not _same(image, _decoded(data[:end] + _FILLER + data[end:], enough)):
            raise OSError("image file is truncated, though its end marker is there")
    return image


def _decoded(data: bytes, enough: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if enough is not None:
        image.draft(image.mode, (enough, enough))
    image.load()
    return image


def _ends_grey(image: Image.Image) -> bool:
    """Whether the last pixel has the colour in which libjpeg leaves what is missing."""
    last = image.getpixel((image.width - 1, image.height - 1))
    return all(value in (127, 128) for value in (last if isinstance(last, tuple) else (last,)))


def _same(image: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(other))
