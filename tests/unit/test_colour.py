"""Colours that aren't sRGB's: as a browser shows them, whatever the file says them in."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from handler import colour
from handler.colour import is_small, matrix_profile
from handler.errors import InvalidImage
from handler.images import decode, decode_reduced, open_picture
from handler.ordinary import ordinary
from tests.support.pictures import made, profiles
from tests.support.pictures.made import halves, png_chunk, save

MAX_PIXELS = 1_000_000
D65 = (0.3127, 0.3290)
P3 = matrix_profile((0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65), None)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB_RED_IN_P3 = (234, 51, 35)
"""By CSS Color 4, section 10.4."""
LINEAR_HALF, HALF = 55, 128
"""A level of 255 in linear light, and sRGB's for it."""
INK = (139,) * 3
"""Half black of ``press(51)``: L* 59.8, Y 0.279; Y 0.257 where its black (L* 20, Y 0.030) is the screen's."""


def chunks(*pairs: tuple[bytes, bytes], pixel: tuple[int, ...] = (LINEAR_HALF,) * 3) -> bytes:
    """A PNG of 8 × 8 px of one colour with chunks before its pixels."""
    rows = (b"\0" + bytes(pixel) * 8) * 8
    return made.png(8, 8, 8, 2, rows, b"".join(png_chunk(*pair) for pair in pairs))


def gama(gamma: float) -> tuple[bytes, bytes]:
    """PNG's gAMA."""
    return b"gAMA", struct.pack(">I", round(gamma * 100_000))


def iccp(profile: bytes) -> tuple[bytes, bytes]:
    """PNG's iCCP."""
    return b"iCCP", b"name\0\0" + zlib.compress(profile)


CHRM = (b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06))))
BROKEN = bytes(64) + P3[64:]


def nclx(primaries: int, transfer: int) -> bytes:
    """An AVIF picture that says its colours in code points."""
    data = save(Image.new("RGB", (64, 64), SRGB_RED_IN_P3), "AVIF", quality=95, speed=10, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def flat(pixel: Any, mode: str = "RGB", size: int = 64) -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, (size, size), pixel)


def with_profile(profile: bytes, pixel: Any = SRGB_RED_IN_P3, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A picture of one colour with an ICC profile."""
    return save(flat(pixel, mode), kind, icc_profile=profile)


RED, SAME, GREY = (255, 0, 0), SRGB_RED_IN_P3, (HALF,) * 3
AVIF = pytest.mark.skipif(not made.HAS_AVIF, reason="this Pillow has no AVIF")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(lambda: with_profile(P3), RED, id="p3"),
        pytest.param(lambda: with_profile(P3, kind="WEBP"), RED, id="p3-webp"),
        pytest.param(lambda: with_profile(P3, kind="TIFF"), RED, id="p3-tiff"),
        pytest.param(lambda: with_profile(P3, (*SAME, 255), "RGBA"), RED, id="p3-transparent"),
        pytest.param(lambda: with_profile(SRGB), SAME, id="srgb"),
        pytest.param(lambda: with_profile(profiles.grey(1.0), LINEAR_HALF, "L"), GREY, id="grey"),
        pytest.param(lambda: with_profile(profiles.grey(1.0), (LINEAR_HALF, 255), "LA"), GREY, id="grey-transparent"),
        pytest.param(lambda: with_profile(profiles.press(51), (0, 0, 0, 128), "CMYK", "TIFF"), INK, id="cmyk"),
        pytest.param(lambda: with_profile(profiles.press(51), (0, 0, 0, 0), "CMYK", "TIFF"), (255,) * 3, id="paper"),
        pytest.param(lambda: with_profile(profiles.press(51)), SAME, id="cmyk-profile-of-rgb"),
        pytest.param(lambda: with_profile(P3, (0, 0, 0, 255), "CMYK", "TIFF"), (0, 0, 0), id="rgb-profile-of-cmyk"),
        pytest.param(lambda: with_profile(BROKEN), SAME, id="broken-profile"),
        pytest.param(lambda: with_profile(b"no profile"), SAME, id="no-profile"),
        pytest.param(lambda: with_profile(P3[:200]), SAME, id="cut-off-profile"),
        pytest.param(lambda: chunks(gama(1.0)), GREY, id="gama"),
        pytest.param(lambda: chunks(gama(1 / 2.2), pixel=SAME), SAME, id="gama-of-srgb"),
        pytest.param(lambda: chunks(gama(1 / 2.2), CHRM, pixel=SAME), RED, id="chrm"),
        pytest.param(lambda: chunks(CHRM, pixel=SAME), SAME, id="chrm-without-gama"),
        pytest.param(lambda: chunks(gama(1.0), (b"sRGB", b"\0"), pixel=SAME), SAME, id="srgb-before-gama"),
        pytest.param(lambda: chunks(iccp(P3), gama(1.0), pixel=SAME), RED, id="profile-before-gama"),
        pytest.param(lambda: chunks((b"cICP", b"\x0c\x0d\0\1"), iccp(SRGB), pixel=SAME), RED, id="cicp-before-profile"),
        pytest.param(lambda: chunks((b"cICP", b"\1\x0d\0\1"), gama(1.0), pixel=SAME), SAME, id="cicp-of-srgb"),
        pytest.param(lambda: chunks((b"cICP", b"\1\x08\0\1")), GREY, id="cicp-linear"),
        pytest.param(lambda: chunks((b"cICP", b"\x0c"), pixel=SAME), SAME, id="cicp-cut-off"),
        pytest.param(lambda: chunks((b"gAMA", bytes(4)), pixel=SAME), SAME, id="gama-of-0"),
        pytest.param(lambda: chunks(gama(1.0), (b"cHRM", bytes(32)), pixel=SAME), SAME, id="chrm-of-0"),
        pytest.param(lambda: nclx(12, 13), RED, id="nclx-p3", marks=AVIF),
        pytest.param(lambda: nclx(1, 13), SAME, id="nclx-srgb", marks=AVIF),
        pytest.param(lambda: nclx(2, 2), SAME, id="nclx-unspecified", marks=AVIF),
    ],
)
def test_colours_are_those_that_a_browser_shows(data: Callable[[], bytes], expected: tuple[int, ...]) -> None:
    for image in (decode(data(), MAX_PIXELS), decode_reduced(data(), MAX_PIXELS, 4)[0]):
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image, int) - expected).max() <= 3, image.getpixel((0, 0))


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_by_its_name(transfer: int, name: str) -> None:
    with pytest.raises(InvalidImage, match=rf"^received a PNG picture in HDR \({name}\), which isn't read; save it in"):
        decode(chunks((b"cICP", bytes((9, transfer, 0, 1)))), MAX_PIXELS)


@AVIF
def test_a_profile_goes_before_code_points_of_avif() -> None:
    data = save(flat(SAME), "AVIF", quality=95, speed=10, subsampling="4:4:4", icc_profile=P3)
    assert np.abs(np.asarray(decode(data, MAX_PIXELS), int) - RED).max() <= 3


def test_a_large_picture_is_converted_after_it_was_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, convert = [], colour.to_srgb

    def recorded(image: Image.Image, profile: bytes) -> Image.Image:
        sizes.append(image.size)
        return convert(image, profile)

    monkeypatch.setattr(colour, "to_srgb", recorded)
    image, whole = decode_reduced(save(halves(SAME, SAME, size=(1001, 700)), "PNG", icc_profile=P3), MAX_PIXELS, 100)
    assert whole == (1001, 700)
    assert sizes == [image.size] == [(143, 100)]
    assert np.abs(np.asarray(image, int) - RED).max() <= 3
    assert decode_reduced(save(halves(size=(1001, 700)), "PNG", icc_profile=SRGB), MAX_PIXELS, 100)[0].size[0] == 1001


def test_what_reads_a_profile_in_the_worker_is_small() -> None:
    assert is_small(P3) and is_small(SRGB) and is_small(b"")
    assert not is_small(profiles.press(51))
    assert not is_small(P3 + bytes(4096))
    assert ordinary(with_profile(P3)) is not None
    assert ordinary(with_profile(P3 + bytes(4096))) is None


def test_few_transforms_are_kept() -> None:
    for gamma in range(5, 40):
        decode(chunks(gama(gamma / 10)), MAX_PIXELS)
    assert len(colour._transforms) <= 4


def test_an_oversized_profile_is_left_out() -> None:
    data = save(flat(SAME), "TIFF", icc_profile=P3 + bytes(5 * 2**20))
    assert open_picture(data, MAX_PIXELS).profile == b""


def test_a_profile_that_unpacks_without_end_is_left_out() -> None:
    data = chunks((b"iCCP", b"name\0\0" + zlib.compress(P3 + bytes(50_000_000), 9)), pixel=SAME)
    assert np.array_equal(np.unique(np.asarray(decode(data, MAX_PIXELS)).reshape(-1, 3), axis=0), [SAME])
