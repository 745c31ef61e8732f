"""Which pictures are decoded in the worker: ordinary JPEG and PNG files, by Pillow's own look at them.

Pillow opens a picture without decoding it. What it then says of format and size decides, and the very
object that was looked at is the one that is decoded. But opening alone can cost a lot, and libjpeg,
which decodes, reads a JPEG's structure once more by itself. So the bytes are looked at before; what is
found there can only send a picture to the decoding process (:mod:`handler.isolation`).
"""

from __future__ import annotations

import numpy as np

from handler.colour import is_small
from handler.errors import RequestError
from handler.images import Opened, open_picture
from handler.jpeg import END

ORDINARY_BYTES = 8 * 2**20
ORDINARY_PIXELS = 16_000_000
ORDINARY_MARKERS = 2000
"""Pairs of bytes in a JPEG that could be a marker. A camera writes 30, its metadata hold some hundreds by chance."""
ORDINARY_SCANS = 32
"""Scans of a JPEG; a progressive one has about 10. Each costs a pass over the whole picture, and can be 20 bytes."""
ORDINARY_CHUNKS = 2000
"""Chunks of a PNG: 8 MiB in pieces of 8 kB are 1000."""
TAIL_BYTES = 4096
"""Of a JPEG, where its end marker is; cameras and phones write a little behind it."""
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_RESTARTS = range(0xD0, 0xD8)
_SCAN = 0xDA
_FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
"""The markers of a frame, which tell a JPEG's size (ITU-T T.81, table B.1)."""


def ordinary(data: bytes, max_pixels: int = ORDINARY_PIXELS) -> Opened | None:
    """The picture, open but not decoded, if it may be decoded in the worker: not large, nothing odd about it.

    None: it belongs into the decoding process, which also tells what is wrong with a broken one.
    """
    if len(data) > ORDINARY_BYTES or not (_few_chunks(data) if data.startswith(_PNG) else _few_markers(data)):
        return None
    try:
        opened = open_picture(data, max_pixels, ("JPEG", "PNG"))
    except RequestError:
        return None
    width, height = opened.image.size
    return opened if width * height <= ORDINARY_PIXELS and is_small(opened.profile) else None


def _few_chunks(data: bytes) -> bool:
    at = len(_PNG)
    for _ in range(ORDINARY_CHUNKS):
        if at + 12 > len(data):
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def _few_markers(data: bytes) -> bool:
    """Whether a JPEG has few scans and segments, and no frame beyond the limit, wherever a reader may see one."""
    if not data.startswith(_JPEG) or END not in data[-TAIL_BYTES:]:  # what lacks its end is decoded thrice
        return False
    content = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(content[:-1] == 0xFF)
    kinds = content[places + 1]
    marks = (kinds >= _FRAMES[0]) & ~((kinds >= _RESTARTS.start) & (kinds < _RESTARTS.stop)) & (kinds != 0xFF)
    if np.count_nonzero(marks) > ORDINARY_MARKERS or np.count_nonzero(kinds == _SCAN) > ORDINARY_SCANS:
        return False
    return not any(_is_large_frame(data[at + 2 : at + 10]) for at in places[np.isin(kinds, _FRAMES)].tolist())


def _is_large_frame(head: bytes) -> bool:
    """Whether the bytes behind FF Cn are the head of a frame of too many pixels.

    Length (8 + 3 a component), depth, height, width, components: others are none for libjpeg, either.
    """
    if len(head) < 8 or int.from_bytes(head[:2], "big") != 8 + 3 * head[7]:
        return False
    return int.from_bytes(head[3:5], "big") * int.from_bytes(head[5:7], "big") > ORDINARY_PIXELS
