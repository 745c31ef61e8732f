"""Bytes → RGB image: every format and mode that is accepted, every kind of rubbish that isn't."""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from handler.errors import ImageTooLarge, InvalidImage, RequestError
from handler.formats import ACCEPTED, FORMATS
from handler.images import decode, decode_reduced, decoding_bytes
from tests.support.pictures import made
from tests.support.pictures.made import BLUE, RED, WHITE, Broken, Sample, halves, jpeg, save

MAX_PIXELS = 1_000_000


def assert_halves(image: Image.Image, left: tuple[int, ...], right: tuple[int, ...], tolerance: int) -> None:
    """Every pixel of the left and the right half has its colour, but for the seam that JPEG blurs."""
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    middle = image.width // 2
    for name, half, colour in (("left", pixels[:, : middle - 16], left), ("right", pixels[:, middle + 16 :], right)):
        off = np.abs(half - np.array(colour)).max()
        assert off <= tolerance, f"the {name} half is {half[0, 0]}, expected {colour}"


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding a pixel fails the test."""

    def load(_: ImageFile.ImageFile) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.parametrize("sample", made.samples(), ids=lambda s: s.name)
def test_picture_of_any_format_and_mode_keeps_its_colours(sample: Sample) -> None:
    image = decode(sample.data, MAX_PIXELS)
    assert image.width == 64
    assert_halves(image, sample.left, sample.right, sample.tolerance)


def test_every_accepted_format_has_a_sample() -> None:
    formats = {Image.open(io.BytesIO(s.data)).format for s in made.samples()}
    missing = set(FORMATS) - formats - (set() if made.HAS_AVIF else {"AVIF"})
    assert not missing
    assert "MPO" in formats  # what phones write; Pillow takes it for JPEG until it has read the header


def test_samples_cover_every_mode() -> None:
    modes = {Image.open(io.BytesIO(s.data)).mode for s in made.samples()}
    assert modes >= {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B", "F"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(picture_format: str, orientation: int) -> None:
    image, whole = decode_reduced(made.oriented(orientation, picture_format), MAX_PIXELS, None)
    assert image.size == whole == (64, 32)
    assert_halves(image, RED, BLUE, 8)


@pytest.mark.skipif(not made.HAS_AVIF, reason="this Pillow has no AVIF")
def test_orientation_of_an_avif_picture_is_applied() -> None:
    image = decode(made.oriented(6, "AVIF"), MAX_PIXELS)
    assert image.size == (64, 32)
    assert_halves(image, RED, BLUE, 12)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_unknown_exif_orientation_changes_nothing(orientation: int) -> None:
    assert_halves(decode(made.oriented(orientation), MAX_PIXELS), RED, BLUE, 4)


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"II*\0", id="cut-off"),
        pytest.param(b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\x7f" * 3, id="lies-about-its-length"),
        pytest.param(b"no TIFF header at all", id="garbage"),
        pytest.param(b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0", id="orientation-as-text"),
    ],
)
def test_broken_exif_is_harmless(exif: bytes) -> None:
    plain = np.asarray(decode(save(halves(), "JPEG"), MAX_PIXELS))
    assert np.array_equal(np.asarray(decode(save(halves(), "JPEG", exif=b"Exif\0\0" + exif), MAX_PIXELS)), plain)


@pytest.mark.parametrize(
    ("kind", "tag"),
    [pytest.param(12, 0x010E, id="number-for-text"), pytest.param(2, 0x011B, id="text-for-number")],
)
def test_orientation_counts_even_if_another_exif_tag_is_odd(kind: int, tag: int) -> None:
    """Pillow's own exif_transpose gives up on such a block, which leaves the picture on its side."""
    # an entry's value lies in its last four bytes, or where they point to: right behind the entries
    odd = struct.pack(">HHI", tag, kind, 1 if kind == 12 else 4) + (b"\0\0\0\x26" if kind == 12 else b"abc\0")
    entries = sorted([struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), odd])
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + b"".join(entries) + bytes(4) + struct.pack(">d", 0.01)
    stored = halves().transpose(Image.Transpose.ROTATE_90)
    data = save(stored, "JPEG", exif=exif)
    with pytest.raises((AttributeError, TypeError, struct.error)):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert_halves(decode(data, MAX_PIXELS), RED, BLUE, 4)


def test_failure_to_read_exif_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> Any:
        raise SyntaxError("not a TIFF file")

    data = save(halves(), "PNG")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "getexif", fail)
    assert_halves(decode(data, MAX_PIXELS), RED, BLUE, 0)


def test_16_bit_ramp_stays_a_ramp() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = np.asarray(decode(save(Image.fromarray(ramp), "PNG"), MAX_PIXELS))
    assert np.array_equal(decoded, np.repeat((ramp // 256)[..., None], 3, axis=2))


def test_float_ramp_is_spread_over_all_levels() -> None:
    ramp = np.linspace(-3, 7, 256, dtype=np.float32).reshape(16, 16)
    decoded = np.asarray(decode(save(Image.fromarray(ramp), "TIFF"), MAX_PIXELS)).astype(int)
    assert np.abs(decoded[..., 0].ravel() - np.arange(256)).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_float_picture_with_undefined_values_decodes_to_something(value: float) -> None:
    pixels = np.array([[0.0, 1.0], [value, 0.5]], dtype=np.float32)
    assert decode(save(Image.fromarray(pixels), "TIFF"), MAX_PIXELS).size == (2, 2)


def test_transparency_is_laid_over_white_by_its_share() -> None:
    alpha = np.arange(256, dtype=np.uint8)
    pixels = np.zeros((1, 256, 4), dtype=np.uint8)  # black, ever more opaque
    pixels[0, :, 3] = alpha
    decoded = np.asarray(decode(save(Image.fromarray(pixels, "RGBA"), "PNG"), MAX_PIXELS)).astype(int)
    assert np.abs(decoded[0, :, 0] - (255 - alpha.astype(int))).max() <= 1


@pytest.mark.parametrize("case", made.broken(), ids=lambda c: c.name)
def test_what_is_no_whole_picture_is_refused(case: Broken) -> None:
    with pytest.raises(RequestError, match=case.message) as caught:
        decode(case.data, MAX_PIXELS)
    assert (caught.value.type, caught.value.status) == (case.type, case.status)


def test_message_names_what_the_bytes_begin_with() -> None:
    with pytest.raises(InvalidImage) as caught:
        decode(b"label: Samoyed\n", MAX_PIXELS)
    assert str(caught.value) == (f"received 15 bytes that are no picture (they begin with b'label: Samoy'); {ACCEPTED}")


@pytest.mark.parametrize("percent", range(0, 100, 5))
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_jpeg_cut_off_anywhere_is_refused(percent: int, progressive: bool) -> None:
    whole = save(made.noise(200, 150), "JPEG", progressive=progressive)
    with pytest.raises(InvalidImage, match=rf"; (send the whole file, )?{ACCEPTED}$"):
        decode(whole[: len(whole) * percent // 100], MAX_PIXELS)
    assert decode(whole, MAX_PIXELS).size == (200, 150)


def test_damage_in_any_byte_never_raises_anything_but_a_request_error() -> None:
    rng = np.random.default_rng(7)
    for sample in made.samples():
        for _ in range(6):
            data = bytearray(sample.data)
            for at in rng.integers(0, min(len(data), 400), 3):
                data[at] = rng.integers(256)
            try:
                image = decode(bytes(data), MAX_PIXELS)
            except RequestError:
                continue
            assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            made.png(50_000, 50_000, 8, 0, b"\0"),
            "received a PNG picture of 50000 × 50000 px = 2,500,000,000 pixels; accepted are at most 100,000,000 "
            "pixels",
            id="png-of-50000x50000",
        ),
        pytest.param(
            made.png(2**31 - 1, 2**31 - 1, 16, 6, b"\0"),
            "received a PNG picture of 2147483647 × 2147483647 px = 4,611,686,014,132,420,609 pixels; accepted are at "
            "most 100,000,000 pixels",
            id="png-as-large-as-can-be",
        ),
        pytest.param(
            made.bomb(13_000),
            "received a PNG picture of 13000 × 13000 px = 169,000,000 pixels; accepted are at most 100,000,000 pixels",
            id="png-below-pillows-own-limit",
        ),
        pytest.param(
            made.icon(made.bomb(13_000)),
            "received a PNG picture of 13000 × 13000 px = 169,000,000 pixels; accepted are at most 100,000,000 pixels",
            id="inside-an-icon-of-256x256",
        ),
        pytest.param(
            b"P6 20000 20000 255\n",
            "received a PPM picture of 20000 × 20000 px = 400,000,000 pixels; accepted are at most 100,000,000 pixels",
            id="ppm",
        ),
        pytest.param(
            b"GIF89a" + struct.pack("<HH", 12_000, 12_000) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
            "received a GIF picture of 12000 × 12000 px = 144,000,000 pixels; accepted are at most 100,000,000 pixels",
            id="gif-with-a-huge-canvas",
        ),
    ],
)
@pytest.mark.usefixtures("no_decoding")
def test_decompression_bomb_is_refused_before_it_is_decoded(data: bytes, message: str) -> None:
    with pytest.raises(ImageTooLarge, match=f"^{re.escape(message)}$") as caught:
        decode(data, 100_000_000)
    assert caught.value.status == 413


def test_pixel_limit_is_inclusive() -> None:
    data = save(Image.new("RGB", (40, 25)), "PNG")
    assert decode(data, 1000).size == (40, 25)
    with pytest.raises(ImageTooLarge) as caught:
        decode(data, 999)
    assert str(caught.value) == "received a PNG picture of 40 × 25 px = 1,000 pixels; accepted are at most 999 pixels"


@pytest.mark.parametrize("picture_format", ["EPS", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "XBM"])
def test_formats_that_pillow_knows_but_the_server_does_not_are_refused(picture_format: str) -> None:
    image = Image.new("1" if picture_format == "XBM" else "RGB", (32, 32))
    data = save(image, picture_format)
    assert Image.open(io.BytesIO(data)).size[0] == 32
    with pytest.raises(InvalidImage, match=rf"^received .*; {ACCEPTED}$"):
        decode(data, MAX_PIXELS)


def test_photoshop_file_is_refused() -> None:
    data = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 1, 1, 8, 3) + struct.pack(">III", 0, 0, 0) + b"\0\0abc"
    Image.init()
    assert Image.open(io.BytesIO(data)).format == "PSD"
    with pytest.raises(InvalidImage, match="a Photoshop document"):
        decode(data, MAX_PIXELS)


def test_what_makes_pillow_warn_does_not_make_the_handler_warn() -> None:
    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    data = save(palette, "PNG", transparency=b"\xff\x80")
    with pytest.warns(UserWarning, match="Palette images with Transparency"):
        Image.open(io.BytesIO(data)).convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, MAX_PIXELS).mode == "RGB"


def test_the_whole_first_frame_is_decoded_not_a_part_of_it() -> None:
    """An animation's second frame that covers only a corner has no say."""
    frames = [halves(), halves()]
    frames[1].paste(WHITE, (0, 0, 8, 8))
    data = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_halves(decode(data, MAX_PIXELS), RED, BLUE, 0)


def test_lack_of_memory_is_the_servers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(MemoryError):
        decode(jpeg(), MAX_PIXELS)


def test_decoding_twice_gives_the_same_pixels() -> None:
    assert decode(jpeg(), MAX_PIXELS).tobytes() == decode(jpeg(), MAX_PIXELS).tobytes()


@pytest.mark.parametrize(
    ("mode", "each"),
    [
        *(("1", 6), ("L", 6), ("P", 6), ("RGB", 4), ("RGBA", 9), ("CMYK", 9), ("I", 15), ("F", 15)),
        *(("I;16", 13), ("I;16L", 13), ("I;16B", 13)),
    ],
)
def test_memory_of_decoding_follows_from_the_mode(mode: str, each: int) -> None:
    """As stored, as RGB, and what turning one into the other holds in between, bytes a pixel."""
    image = Image.new(mode, (30, 20))
    assert decoding_bytes(image, 600) == 600 * each


def test_memory_of_decoding_is_that_of_the_decoder_where_it_takes_more() -> None:
    image = Image.new("RGB", (30, 20))
    image.info["transparency"] = (1, 2, 3)
    assert decoding_bytes(image, 600) == 600 * 9
    for image.format, each in (("WEBP", 17), ("AVIF", 13), ("HEIF", 12), ("PNG", 9)):
        assert decoding_bytes(image, 600) == 600 * each


def test_a_progressive_jpeg_is_held_whole_however_small_it_is_decoded() -> None:
    """Two bytes a coefficient; with 4:2:0 one and a half coefficients a pixel."""
    image = Image.open(io.BytesIO(save(halves(size=(640, 480)), "JPEG", progressive=True, subsampling="4:2:0")))
    image.draft("RGB", (80, 60))
    assert image.size == (80, 60)
    assert decoding_bytes(image, 640 * 480) == 80 * 60 * 4 + 640 * 480 * 3
