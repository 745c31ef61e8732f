"""Picture files → what Pillow can open: which formats are tried, what is mended before, what is known by name alone."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from handler.colour import Coded
from handler.errors import InvalidImage

_PLUGINS = (
    *(AvifImagePlugin, BmpImagePlugin, GifImagePlugin, IcoImagePlugin, JpegImagePlugin),
    *(PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin),
)
"""Imported, so that Pillow doesn't load its forty others, which stay off (EPS, for one, would run Ghostscript)."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "PPM")
"""Pillow's names of the formats that are tried; JPEG includes MPO, as cameras write it. HEIF only where it is meant."""
HAS_HEIF = importlib.util.find_spec("pi_heif") is not None
"""Whether HEIC pictures can be decoded."""
ACCEPTED = f"accepted are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, {'HEIC, ' if HAS_HEIF else ''}ICO and PPM pictures"
PNG = b"\x89PNG\r\n\x1a\n"
_JFIF, _JFIF_BYTES = b"\xff\xd8\xff\xe0", 16
_ICON = b"\0\0\1\0"
_BMP = b"BM"

_COLOURS = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP")
_ANCILLARY = (*_COLOURS, b"eXIf", b"cICP")
"""PNG's chunks, beside those that hold the pixels, that say how they look."""
_PROFILE_BYTES = 10**6
"""Of an ICC profile in a PNG, what Pillow unpacks."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}

_KNOWN = (
    (r"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (r"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (r"8BPS", "a Photoshop document"),
    (r"II\*\0.{4}CR|FUJIFILMCCD|IIU\0|IIRO|MMOR", "a camera's raw picture"),
    (r"II[*+]\0|MM\0[*+]", "a TIFF picture of a kind that isn't read"),
    (r"\xff\xd8\xff", "a JPEG picture that has no readable header"),
    (r"\x89PNG", "a PNG picture that has no readable header"),
    (r"v/1\x01", "an OpenEXR picture"),
    (r"#\?RADIANCE|#\?RGBE", "a Radiance HDR picture"),
    (r"DDS ", "a DDS texture"),
    (r"icns", "a macOS icon"),
    (r"%PDF", "a PDF document"),
    (r"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document"),
    (r"\s*(<\?xml[^>]*>\s*)?(<!--.{0,1000}?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "an SVG drawing"),
    (r"\s*(<!doctype html|<html|<head|<body)", "a page of HTML"),
    (r".{4}ftyp(isom|iso[0-9]|mp4|M4V|qt  |avc1|3g)|.{4}(moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF.{4}AVI ", "a video"),
    (r"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "a packed archive"),
    (r"/9j/|iVBORw0KGgo|data:image/", "a picture as base64 text, which is accepted in JSON alone"),
)
"""Beginnings of files that are no picture that is read, as regular expressions, and what to call them."""


def name_of(data: bytes) -> str:
    """What a file is that isn't read, with its article; "" if that isn't known."""
    begin = bytes(data[:2048])
    return next((name for magic, name in _KNOWN if re.match(magic.encode("latin-1"), begin, re.DOTALL | re.I)), "")


def is_heif(data: bytes) -> bool:
    """Whether a file is HEIC or HEIF, as phones store photographs; AVIF, of the same family, isn't."""
    if data[4:8] != b"ftyp":
        return False
    brands = _brands(data)
    return bool(brands & _HEIF_BRANDS) and not brands & _AVIF_BRANDS


def _brands(data: bytes) -> set[bytes]:
    head = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return {head[:4], *(head[at : at + 4] for at in range(8, len(head), 4))}


def open_heif(data: bytes) -> Image.Image:
    """An HEIC or HEIF picture by libheif, with one thread.

    Raises:
        InvalidImage: its decoder isn't installed.
    """
    if not HAS_HEIF:
        raise InvalidImage(
            "received an HEIC picture, and this server has no decoder for it (pi-heif isn't installed); send it as "
            f"JPEG, {ACCEPTED}"
        )
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return Image.open(io.BytesIO(data), formats=("HEIF",))


def mended(data: bytes) -> tuple[bytes, Coded | None]:
    """The file without what Pillow stumbles over and pixels don't need, and its code points of colour.

    A browser leaves out a broken or oversized text of a PNG, and a short JFIF segment; Pillow refuses the picture.
    """
    if data.startswith(PNG):
        return _mended_png(data)
    if data.startswith(_JFIF):
        length = int.from_bytes(data[4:6], "big")
        return (data if length >= _JFIF_BYTES else data[:2] + data[4 + length :]), None
    at = data.find(b"colrnclx", 0, 2**16) if data[4:8] == b"ftyp" else -1
    return data, Coded(*struct.unpack_from(">HH", data, at + 8)) if 0 <= at <= len(data) - 12 else None


def _mended_png(data: bytes) -> tuple[bytes, Coded | None]:
    coded, kept = None, [data[: len(PNG)]]
    at, start, whole = len(PNG), len(PNG), memoryview(data)
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind[0] & 0x20:  # a small letter: the pixels don't need it
            content = whole[at + 8 : end - 4]
            if kind not in _ANCILLARY or end > len(data) or not _is_sound(kind, content, data[end - 4 : end]):
                kept.append(whole[start:at])  # type: ignore[arg-type]  # joined below
                start = end
            elif kind == b"cICP" and len(content) == 4:
                coded = Coded(content[0], content[1])
        at = end
    if start == len(PNG):
        return data, coded
    return b"".join([*kept, whole[start:]]), coded


def _is_sound(kind: bytes, content: memoryview, check: bytes) -> bool:
    if zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big") != check:
        return False
    if kind != b"iCCP":
        return True
    packed = bytes(content).partition(b"\0")[2][1:]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _PROFILE_BYTES)
    except zlib.error:
        return False
    return unpacking.eof


def is_icon(data: bytes) -> bool:
    """Whether it is an ICO file."""
    return data.startswith(_ICON)


class Icon:
    """The largest picture of an ICO file, of those the one of most bits a pixel.

    Raises:
        Exception: whatever a broken one makes Pillow raise.
    """

    def __init__(self, data: bytes) -> None:
        self._file = IcoImagePlugin.IcoFile(io.BytesIO(data))
        self._entry = max(self._file.entry, key=lambda entry: (entry.square, entry.color_depth))
        self.head = Image.open(io.BytesIO(data[self._entry.offset :]), formats=("PNG", "DIB"))
        """Its picture, not decoded."""

    def decoded(self) -> Image.Image:
        """The picture."""
        image = self._file.frame(self._file.entry.index(self._entry))
        image.load()
        image.format = "ICO"
        return image


def bitfields(data: bytes, check: Callable[[int, int], None]) -> Image.Image | None:
    """A BMP picture whose channels lie where Pillow doesn't expect them; None if it is none.

    Args:
        data: the file.
        check: is called with width and height before a pixel is read; it may raise.

    Raises:
        InvalidImage: it is cut off.
    """
    if not data.startswith(_BMP) or len(data) < 70:
        return None
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    if compression not in (3, 6) or bits not in (16, 32) or width <= 0 or not height:
        return None
    check(width, abs(height))
    words, row = bits // 8, (width * bits + 31) // 32 * 4
    if len(data) < offset + row * abs(height):
        raise InvalidImage(
            f"received a BMP picture of {width} × {abs(height)} px that is cut off; send the whole file, {ACCEPTED}"
        )
    stored = np.frombuffer(data, f"<u{words}", row // words * abs(height), offset).reshape(abs(height), -1)[:, :width]
    channels = []
    for mask in struct.unpack_from("<III", data, 54):
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        most = mask >> shift
        if most > 0xFFFF:
            return None
        levels = np.round(np.arange(most + 1) * (255 / max(most, 1))).astype(np.uint8)
        channels.append(levels[(stored & mask) >> shift])  # (H, W) uint8
    pixels = np.stack(channels, axis=-1)  # (H, W, 3) uint8
    image = Image.fromarray(pixels if height < 0 else np.ascontiguousarray(pixels[::-1]))
    image.format = "BMP"
    return image
