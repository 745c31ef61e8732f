"""Picture files as they are found outside: what Pillow alone refuses or gets wrong, and what is known by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageDraw

from handler import formats
from handler.errors import ImageTooLarge, InvalidImage
from handler.formats import ACCEPTED, FORMATS
from handler.images import decode, decode_reduced, open_picture
from handler.ordinary import ordinary
from handler.preprocessing import Preprocessing
from tests.support.pictures import made
from tests.support.pictures.made import BLUE, RED, WHITE, halves, noise, png_chunk, save

MAX_PIXELS = 1_000_000
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def card() -> Image.Image:
    """A picture with ramps of each channel, 96 × 64 px."""
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    return Image.fromarray(np.stack([x * 2, y * 3, 255 - x - y], axis=-1).astype(np.uint8))


def grey() -> Image.Image:
    """The same without colours."""
    return card().convert("L")


def heic(image: Image.Image, **options: Any) -> bytes:
    """An HEIC file, as a phone stores a photograph."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90, **options)
    return buffer.getvalue()


def tiff(pixels: Any, **options: Any) -> bytes:
    """A TIFF file of a kind that Pillow doesn't write."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def with_chunks(*pairs: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """``card`` as a PNG with chunks before or behind its pixels."""
    data, extra = save(card(), "PNG"), b"".join(png_chunk(*pair) for pair in pairs)
    at = len(data) - 12 if behind else 33
    return data[:at] + extra + data[at:]


def broken_check(kind: bytes) -> bytes:
    """``card`` as a PNG with a chunk whose checksum is wrong."""
    data = bytearray(with_chunks((kind, bytes(7))))
    data[33 + 8 + 7] ^= 1
    return bytes(data)


def twelve_bits() -> bytes:
    """``grey`` as scanners store it: 12 bits a pixel, two pixels in three bytes."""
    values = np.asarray(grey()).astype(np.uint16) << 4  # (H, W)
    left, right = values[:, ::2], values[:, 1::2]
    packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=-1).astype(np.uint8)
    entries = [(256, 96), (257, 64), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 64), (279, packed.size)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + packed.size) + packed.tobytes() + directory + bytes(4)


def small_palette() -> bytes:
    """``card`` as a TIFF whose palette holds levels of 8 bits where the format asks for 16."""
    data = bytearray(save(card().quantize(64), "TIFF"))
    image = Image.open(io.BytesIO(data))
    at = data.index(struct.pack("<768H", *image.tag_v2[320]))  # type: ignore[attr-defined]
    levels = np.frombuffer(bytes(data[at : at + 1536]), "<u2") // 256
    data[at : at + 1536] = levels.astype("<u2").tobytes()
    return bytes(data)


def bitfields(masks: tuple[int, int, int], words: str, top_down: bool = False) -> bytes:
    """``card`` as a BMP with its channels at ``masks``."""
    size = np.dtype(words).itemsize
    stored = np.zeros((64, 96), np.uint64)
    for channel, mask in zip(np.moveaxis(np.asarray(card()), -1, 0), masks, strict=True):
        shift = (mask & -mask).bit_length() - 1
        stored |= np.round(channel / 255 * (mask >> shift)).astype(np.uint64) << np.uint64(shift)
    rows = stored if top_down else stored[::-1]
    head = struct.pack("<IiiHHIIiiII", 40, 96, -64 if top_down else 64, 1, 8 * size, 3, 0, 0, 0, 0, 0)
    body = head + struct.pack("<III", *masks) + rows.astype(words).tobytes()
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 52) + body


def small_frame() -> bytes:
    """A GIF of 64 × 32 px whose first frame, red, covers the left half alone."""
    data = bytearray(save(Image.new("RGB", (32, 32), RED), "GIF"))
    data[6:8] = struct.pack("<H", 64)
    return bytes(data)


def two_icons() -> bytes:
    """An ICO with two pictures of one size: one of 4 bits first, one of 32 bits."""
    few, many = save(noise(32, 32).quantize(16), "ICO", bitmap_format="bmp", sizes=[(32, 32)]), icon32()
    pictures = [few[22:], many[22:]]
    entries, offset = b"", 6 + 2 * 16
    for bits, picture in zip((4, 32), pictures, strict=True):
        entries += struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, bits, len(picture), offset)
        offset += len(picture)
    return struct.pack("<HHH", 0, 1, 2) + entries + b"".join(pictures)


def icon32() -> bytes:
    """An ICO of 32 × 32 px, red and blue."""
    return save(halves(size=(32, 32)).convert("RGBA"), "ICO", bitmap_format="bmp", sizes=[(32, 32)])


def premultiplied() -> bytes:
    """``grey`` as a TIFF, half opaque, multiplied by that already."""
    half = np.full((64, 96), 128, np.uint8)
    return tiff(np.stack([np.asarray(grey()) // 2, half], -1), photometric="minisblack", extrasamples=["assocalpha"])


def over_white() -> Image.Image:
    """What ``premultiplied`` shows."""
    return Image.fromarray((np.asarray(grey()) // 2 + 127).astype(np.uint8))


def spread() -> Image.Image:
    """``grey``, from black to white."""
    values = np.asarray(grey(), float)
    return Image.fromarray(((values - values.min()) * 255 / (values.max() - values.min())).astype(np.uint8))


def planes() -> bytes:
    """``card`` as a TIFF with its channels apart."""
    return tiff(np.moveaxis(np.asarray(card()), -1, 0), photometric="rgb", planarconfig="separate")


def undefined() -> bytes:
    """``grey`` as numbers of 0 to 1, one of which is none."""
    values = np.asarray(grey(), np.float32) / 255
    values[0, 0] = np.nan
    return tiff(values)


def grey_png(bits: int, transparent: int) -> bytes:
    """A PNG of 8 × 8 px and ``bits`` a pixel, all of them ``transparent``."""
    row = bytes([sum(transparent << at for at in range(0, 8, bits))] * bits) if bits < 8 else b"\1\2" * 8
    extra = png_chunk(b"tRNS", struct.pack(">H", transparent if bits < 8 else 0x0102))
    return made.png(8, 8, bits, 0, (b"\0" + row) * 8, extra)


def short_jfif() -> bytes:
    """A JPEG with an APP0 segment that is too short."""
    data = save(card(), "JPEG", quality=95)
    return data[:4] + struct.pack(">H", 7) + b"JFIF\0" + data[4 + 16 :]


HUGE_TEXT = b"Comment\0\0" + zlib.compress(bytes(3 * 2**20))


KINDS = pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(lambda: heic(card()), card, id="heic"),
        pytest.param(lambda: heic(card().convert("RGBA")), card, id="heic-transparent"),
        pytest.param(lambda: with_chunks((b"zTXt", HUGE_TEXT)), card, id="png-large-text"),
        pytest.param(lambda: with_chunks((b"zTXt", HUGE_TEXT), behind=True), card, id="png-large-text-behind"),
        pytest.param(lambda: with_chunks((b"iTXt", b"\xff")), card, id="png-broken-text"),
        pytest.param(lambda: broken_check(b"tIME"), card, id="png-wrong-checksum-of-a-time"),
        pytest.param(lambda: broken_check(b"gAMA"), card, id="png-wrong-checksum-of-a-gamma"),
        pytest.param(lambda: with_chunks((b"iCCP", b"broken")), card, id="png-broken-profile"),
        pytest.param(lambda: save(card(), "JPEG", quality=95)[:-2], card, id="jpeg-without-its-end-marker"),
        pytest.param(short_jfif, card, id="jpeg-short-segment"),
        pytest.param(lambda: save(card(), "JPEG", quality=95, xmp=XMP), card, id="jpeg-orientation-in-xmp"),
        pytest.param(lambda: with_chunks((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), card, id="png-xmp"),
        pytest.param(small_frame, lambda: halves(RED, WHITE), id="gif-small-frame"),
        pytest.param(two_icons, lambda: halves(size=(32, 32)), id="ico-two-of-one-size"),
        pytest.param(lambda: bitfields((0xF00, 0xF0, 0xF), "<u2"), card, id="bmp-444"),
        pytest.param(lambda: bitfields((0xF, 0xF0, 0xF00), "<u2", top_down=True), card, id="bmp-444-top-down"),
        pytest.param(lambda: bitfields((0x3FF << 20, 0x3FF << 10, 0x3FF), "<u4"), card, id="bmp-10-bits"),
        pytest.param(twelve_bits, grey, id="tiff-12-bits"),
        pytest.param(small_palette, card, id="tiff-palette-of-8-bits"),
        pytest.param(premultiplied, over_white, id="tiff-premultiplied-grey"),
        pytest.param(undefined, spread, id="tiff-undefined-number"),
        pytest.param(planes, card, id="tiff-planes"),
        *(
            pytest.param(
                lambda bits=bits: grey_png(bits, 1), lambda: halves(WHITE, WHITE, size=(8, 8)), id=f"png-{bits}"
            )
            for bits in (1, 2, 4, 16)
        ),
        pytest.param(
            lambda: made.png(8, 8, 16, 2, (b"\0" + b"\1\2\3\4\5\6" * 8) * 8, png_chunk(b"tRNS", b"\1\2\3\4\5\6")),
            lambda: halves(WHITE, WHITE, size=(8, 8)),
            id="png-16-rgb",
        ),
    ],
)
"""Kinds of files, and what they show."""


@KINDS
def test_pictures_are_read_as_a_browser_shows_them(
    data: Callable[[], bytes], expected: Callable[[], Image.Image]
) -> None:
    shown, wanted = np.asarray(decode(data(), MAX_PIXELS), int), np.asarray(expected().convert("RGB"), int)
    assert shown.shape == wanted.shape
    assert np.abs(shown - wanted).mean() <= 6


@KINDS
def test_training_evaluation_and_serving_see_the_same(
    data: Callable[[], bytes], expected: Callable[[], Image.Image]
) -> None:
    content, side = data(), min(expected().size)
    preprocessing = Preprocessing(side, side, (), ())
    training = preprocessing.to_array(decode(content, MAX_PIXELS)).astype(int)
    evaluation = preprocessing.read(content, MAX_PIXELS).astype(int)
    served = preprocessing.view(open_picture(content, MAX_PIXELS), MAX_PIXELS, 0).array
    assert np.array_equal(evaluation, served)
    assert np.abs(training - evaluation).mean() <= 1


def test_a_jpeg_has_the_pixels_that_are_decoded_of_it() -> None:
    """A telephone's 108 megapixels are 1.7 where the network wants few."""
    data = save(Image.new("L", (12_000, 9_000), 90), "JPEG")
    image, whole = decode_reduced(data, 10**8, 512)
    assert (image.size, whole) == ((1500, 1125), (12_000, 9_000))
    with pytest.raises(ImageTooLarge, match="12000 × 9000 px = 108,000,000 pixels; accepted are at most 100,000,000"):
        decode(data, 10**8)
    with pytest.raises(ImageTooLarge, match="= 6,750,000 pixels where it is decoded at a reduced size; accepted are"):
        decode_reduced(data, 5_000_000, 2000)
    assert ordinary(data, 10**8) is None


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_heic_picture_is_turned_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = halves(size=(128, 64)).transpose(Image.Transpose.ROTATE_90) if orientation == 6 else halves(size=(128, 64))
    image = decode(heic(stored, exif=exif.tobytes()), MAX_PIXELS)
    assert image.size == (128, 64)
    assert np.abs(np.asarray(image.getpixel((10, 30)), int) - RED).max() <= 12
    assert np.abs(np.asarray(image.getpixel((118, 30)), int) - BLUE).max() <= 12


def test_an_heic_picture_has_the_limits_of_all_others() -> None:
    data = heic(noise(200, 100))
    with pytest.raises(ImageTooLarge, match=r"^received a HEIF picture of 200 × 100 px = 20,000 pixels; accepted are"):
        decode(data, 19_999)
    with pytest.raises(InvalidImage, match=rf"^received .*{ACCEPTED}$"):
        decode(data[: len(data) // 2], MAX_PIXELS)


def test_without_its_decoder_heic_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "HAS_HEIF", False)
    with pytest.raises(InvalidImage) as caught:
        decode(heic(card()), MAX_PIXELS)
    assert str(caught.value).startswith(
        "received an HEIC picture, and this server has no decoder for it (pi-heif isn't installed); send it as JPEG, "
    )


def with_brand(*brands: bytes) -> bytes:
    """The head of a file of the family of MP4."""
    return struct.pack(">I4s4sI", 16 + 4 * (len(brands) - 1), b"ftyp", brands[0], 0) + b"".join(brands[1:]) + bytes(64)


@pytest.mark.parametrize(
    ("begin", "name"),
    [
        (b"\xff\x0a" + bytes(40), "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"\xff\x4f\xff\x51" + bytes(40), "a JPEG 2000 picture"),
        (b"8BPS\0\1" + bytes(40), "a Photoshop document"),
        (b"FUJIFILMCCD-RAW", "a camera's raw picture"),
        (b"MM\0+\0\x08\0\0" + bytes(40), "a TIFF picture of a kind that isn't read"),
        (b"v/1\x01" + bytes(40), "an OpenEXR picture"),
        (b"#?RADIANCE\n", "a Radiance HDR picture"),
        (b"DDS " + bytes(130), "a DDS texture"),
        (b"icns" + bytes(40), "a macOS icon"),
        (b"%PDF-1.7", "a PDF document"),
        (b"%!PS-Adobe-3.0", "a PostScript document"),
        (b"\n<?xml version='1.0'?>\n<!-- a -->\n<svg/>", "an SVG drawing"),
        (b"  <!DOCTYPE HTML>\n<html>", "a page of HTML"),
        (with_brand(b"isom", b"mp41"), "a video"),
        (with_brand(b"qt  "), "a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "a video"),
        (b"PK\x03\x04" + bytes(40), "a packed archive"),
        (made.base64_of(save(card(), "JPEG")).encode(), "a picture as base64 text, which is accepted in JSON alone"),
    ],
)
def test_what_isnt_read_is_named(begin: bytes, name: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode(begin, MAX_PIXELS)
    assert str(caught.value) == f"received {name}; {ACCEPTED}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: tiff(np.zeros((3, 64, 96), np.uint16), photometric="rgb", planarconfig="separate"),
            "received a TIFF picture of a kind that isn't read (16 bits a channel, in planes apart); ",
        ),
        (lambda: tiff(np.zeros((64, 96, 3), np.float32), photometric="rgb"), "received a TIFF picture of a kind that "),
        (lambda: bitfields((0xF00, 0xF0, 0xF), "<u2")[:-1], "received a BMP picture of 96 × 64 px that is cut off; "),
    ],
)
def test_no_garbage_is_served(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode(data(), MAX_PIXELS)
    assert str(caught.value).startswith(message)


def test_a_bmp_picture_of_bit_fields_is_measured_before_it_is_read() -> None:
    with pytest.raises(ImageTooLarge, match=r"^received a BMP picture of 96 × 64 px = 6,144 pixels; accepted are"):
        decode(bitfields((0xF00, 0xF0, 0xF), "<u2"), 6143)


def test_avif_isnt_taken_for_heif() -> None:
    assert formats.is_heif(with_brand(b"heic", b"mif1")) and formats.is_heif(with_brand(b"mif1", b"heic"))
    assert not formats.is_heif(with_brand(b"avif", b"mif1")) and not formats.is_heif(with_brand(b"mif1", b"avif"))
    assert not formats.is_heif(b"") and "HEIF" not in FORMATS


def test_a_good_png_stays_as_it_is() -> None:
    data = save(card(), "PNG")
    assert formats.mended(data)[0] is data


def photograph(subsampling: str, progressive: bool, restarts: int) -> bytes:
    """A JPEG with detail everywhere."""
    options = {"restart_marker_rows": restarts} if restarts else {}
    return save(noise(160, 120), "JPEG", subsampling=subsampling, progressive=progressive, **options)


@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_a_jpeg_may_lack_its_end_marker_but_nothing_else(subsampling: str, progressive: bool, restarts: int) -> None:
    whole = photograph(subsampling, progressive, restarts)
    assert np.array_equal(np.asarray(decode(whole[:-2], MAX_PIXELS)), np.asarray(decode(whole, MAX_PIXELS)))
    for missing in (0.02, 0.3, 0.6):
        with pytest.raises(InvalidImage, match="broken or cut off"):
            decode(whole[: int(len(whole) * (1 - missing))], MAX_PIXELS)


@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("missing", [0.1, 0.3, 0.6])
def test_a_jpeg_that_was_cut_off_and_ended_is_refused(missing: float, restarts: int) -> None:
    whole = photograph("4:2:0", False, restarts)
    with pytest.raises(InvalidImage, match="truncated, though its end marker is there"):
        decode(whole[: int(len(whole) * (1 - missing))] + b"\xff\xd9", MAX_PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_that_ends_grey_is_read(mode: str) -> None:
    image = noise(160, 120).convert(mode)
    ImageDraw.Draw(image).rectangle((0, 60, 160, 120), (128,) * 3 if mode == "RGB" else 128)
    data = save(image, "JPEG", quality=95)
    assert decode(data, MAX_PIXELS).getpixel((159, 119)) == (128, 128, 128)
    assert decode(data[:-2] + b"\xff\xd9" + b"more", MAX_PIXELS).size == (160, 120)
