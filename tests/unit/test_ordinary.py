"""Which pictures the worker decodes itself: whatever else a file holds, none of more pixels than it may have."""

from __future__ import annotations

import struct
import time

import pytest
from PIL import Image

from handler import ordinary as module
from handler.images import load_reduced
from handler.ordinary import ordinary
from tests.support.hostile import http as hostile
from tests.support.pictures import made
from tests.support.pictures.golden import PACKAGED, Golden
from tests.support.pictures.made import jpeg, png, png_chunk, save

SIDE = 5000
"""Of a picture of 25 million pixels."""
SMALL = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
LARGE_PNG = save(Image.new("L", (SIDE, SIDE)), "PNG")
LARGE_JPEG = save(Image.new("L", (SIDE, SIDE)), "JPEG")
FRAME = LARGE_JPEG.index(b"\xff\xc0")


def disguised() -> list[tuple[str, bytes]]:
    """Pictures of 25 million pixels, each with something before its size that hides it from one reader or another."""
    signature, rest = LARGE_PNG[:8], LARGE_PNG[8:]
    before, frame = LARGE_JPEG[:FRAME], LARGE_JPEG[FRAME:]
    small = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 64, 64, 1) + b"\1\x11\0"
    distance = 2 + 0xC000 - len(b"\xff" + frame[:13])  # from the end of the frame's head
    comment = b"\xff\xfe\xff\xff" + (bytes(distance - 4) + small + b"\xff\xda").ljust(0xFFFD, b"\0")
    return [
        ("png-chunk-before-the-header", signature + png_chunk(b"teSt", SMALL) + rest),
        ("png-small-header-before", signature + png_chunk(b"IHDR", SMALL) + rest),
        ("jpeg-fill-byte", before + b"\xff" + frame),
        # who takes the fill byte for a marker and C0 00 for its length goes on in the comment
        ("jpeg-fill-byte-and-comment", before + b"\xff" + frame[:13] + comment + frame[13:]),
        ("jpeg-fill-bytes", before + b"\xff" * 500 + frame),
        ("jpeg-small-frame-before", before + small + frame),
        ("jpeg-small-frame-behind", LARGE_JPEG[: LARGE_JPEG.index(b"\xff\xda")] + small + jpeg()[2:]),
        ("jpeg-rubbish-before-the-frame", before + b"rubbish" + frame),
    ]


@pytest.mark.parametrize("golden", PACKAGED, ids=lambda g: g.name)
def test_photographs_are_ordinary(golden: Golden) -> None:
    assert ordinary(golden.path.read_bytes())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(save(made.noise(64, 64), "WEBP"), id="another-format"),
        pytest.param(jpeg() + bytes(module.ORDINARY_BYTES), id="many-bytes"),
        pytest.param(LARGE_PNG, id="many-pixels-png"),
        pytest.param(LARGE_JPEG, id="many-pixels-jpeg"),
        pytest.param(hostile.jpeg_of_scans(64, 33), id="many-scans"),
        pytest.param(hostile.jpeg_of_segments(module.ORDINARY_MARKERS), id="many-segments"),
        pytest.param(hostile.png_of_chunks(2000), id="many-chunks"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="png-without-header"),
        pytest.param(b"\xff\xd8\xff\xda\0\2" + bytes(20), id="jpeg-without-frame"),
        pytest.param(jpeg()[:30], id="jpeg-cut-off"),
        pytest.param(b"", id="nothing"),
        *(pytest.param(data, id=name) for name, data in disguised()),
    ],
)
def test_what_is_odd_or_large_is_not_ordinary(data: bytes) -> None:
    assert ordinary(data) is None


def test_a_second_header_after_the_pixels_changes_nothing() -> None:
    """Pillow reads the chunks behind the pixels, too: the picture stays the one that was looked at."""
    rows = (b"\0" + bytes(64)) * 64
    whole = png(64, 64, 8, 0, rows)
    end = len(whole) - 12
    large = png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0))
    opened = ordinary(whole[:end] + large + whole[end:])
    assert opened is not None
    assert load_reduced(opened, 10**8, None)[0].size == (64, 64)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(hostile.jpeg_of_segments(module.ORDINARY_MARKERS - 20, bytes(4000)), id="segments"),
        pytest.param(hostile.png_of_chunks(module.ORDINARY_CHUNKS - 10), id="chunks"),
        pytest.param(hostile.jpeg_of_exif(3_000_000), id="exif"),
        pytest.param(hostile.jpeg_of_scans(4000, module.ORDINARY_SCANS), id="scans"),
    ],
)
def test_what_is_just_ordinary_costs_the_worker_little(data: bytes) -> None:
    start = time.process_time()
    opened = ordinary(data)
    assert opened is not None
    load_reduced(opened, 10**8, None)
    assert time.process_time() - start < 2
