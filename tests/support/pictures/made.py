"""Pictures made on the spot, with what is right about them: for the unit tests and for the real server.

Nearly every good sample is 64 × 32 px, its left half of one colour and its right half of another,
so that a test can tell a wrong mode, a wrong frame and a wrong orientation from the right ones.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, features

Colour = tuple[int, int, int]

RED: Colour = (255, 0, 0)
BLUE: Colour = (0, 0, 255)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
WIDTH, HEIGHT = 64, 32

HAS_AVIF = bool(features.check("avif"))
ACCEPTED = "accepted are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, ICO and PPM pictures"


@dataclass(frozen=True)
class Sample:
    """A good picture: the colour of its left and of its right half, and how far off a channel may be."""

    name: str
    data: bytes
    left: Colour
    right: Colour
    tolerance: int = 4


@dataclass(frozen=True)
class Broken:
    """Bytes that are no good picture: the error's type, its status, and a regular expression for its message."""

    name: str
    data: bytes
    type: str
    status: int
    message: str


def save(image: Image.Image, picture_format: str, **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, picture_format, **options)
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    """Base64 as JSON carries it."""
    return base64.b64encode(data).decode()


def halves(
    left: Any = RED, right: Any = BLUE, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Image.Image:
    """A picture with two colours, side by side."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture of smooth noise: it has detail at every scale, unlike plain colours."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height)), fine, 0.3)


def jpeg(seed: int = 0, width: int = 96, height: int = 64) -> bytes:
    """A JPEG of noise, another one for each seed."""
    return save(noise(width, height, seed), "JPEG", quality=90)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand, for what Pillow doesn't write: ``rows`` each begin with the filter byte 0.

    ``extra`` holds chunks that go before the pixels.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def icon(inner: bytes, width: int = 0, height: int = 0) -> bytes:
    """An ICO file around a PNG; its own header says ``width`` × ``height`` px, 0 for 256."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", width, height, 0, 0, 1, 32, len(inner), 22) + inner


def bomb(side: int) -> bytes:
    """A small PNG that declares ``side`` × ``side`` px and carries all of them, black."""
    return png(side, side, 1, 0, bytes((side + 7) // 8 + 1) * side)


def oriented(orientation: int, picture_format: str = "JPEG") -> bytes:
    """A picture that is 64 × 32 px, red left and blue right, once its EXIF orientation is applied."""
    undo: dict[int, Image.Transpose] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = halves()
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(stored, picture_format, exif=exif)


def samples() -> list[Sample]:
    """A good picture of every format and mode that is accepted."""
    rgb, rgba = halves(), halves((*RED, 255), (*BLUE, 0), "RGBA")
    grey = halves(200, 50, "L")
    light, dark = (200, 200, 200), (50, 50, 50)
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    lab = ImageCms.createProfile("LAB")
    found = [
        Sample("jpeg-rgb", save(rgb, "JPEG", quality=95), RED, BLUE),
        Sample("jpeg-progressive", save(rgb, "JPEG", quality=95, progressive=True), RED, BLUE),
        Sample("jpeg-grayscale", save(grey, "JPEG", quality=95), light, dark),
        Sample("jpeg-cmyk", save(rgb.convert("CMYK"), "JPEG", quality=95), RED, BLUE, 8),
        Sample("jpeg-mpo", save(rgb, "MPO", save_all=True, append_images=[halves(BLUE, RED)]), RED, BLUE),
        Sample("jpeg-exif-rotated", oriented(6), RED, BLUE),
        Sample("png-rgb", save(rgb, "PNG"), RED, BLUE, 0),
        Sample("png-grayscale", save(grey, "PNG"), light, dark, 0),
        Sample("png-bilevel", save(halves(1, 0, "1"), "PNG"), WHITE, BLACK, 0),
        Sample("png-palette", save(palette, "PNG"), RED, BLUE, 0),
        Sample(
            "png-palette-transparent", save(palette, "PNG", transparency=_index(palette, right=True)), RED, WHITE, 0
        ),
        Sample("png-palette-alpha", save(palette, "PNG", transparency=_alphas(palette)), RED, (127, 127, 255), 1),
        Sample("png-grayscale-alpha", save(halves((200, 255), (50, 0), "LA"), "PNG"), light, WHITE, 0),
        Sample("png-grayscale-transparent", save(grey, "PNG", transparency=50), light, WHITE, 0),
        Sample("png-bilevel-transparent", save(halves(1, 0, "1"), "PNG", transparency=0), WHITE, WHITE, 0),
        Sample("png-rgb-transparent", save(rgb, "PNG", transparency=BLUE), RED, WHITE, 0),
        Sample("png-rgba", save(rgba, "PNG"), RED, WHITE, 0),
        Sample("png-rgba-half", save(halves((*RED, 255), (0, 0, 0, 128), "RGBA"), "PNG"), RED, (127, 127, 127), 1),
        Sample("png-16-bit-grayscale", _png16(0, (51400,), (12850,)), light, dark, 0),
        Sample("png-16-bit-dark", _png16(0, (255,), (0,)), BLACK, BLACK, 0),
        Sample("png-16-bit-grayscale-alpha", _png16(4, (51400, 65535), (12850, 0)), light, WHITE, 0),
        Sample("png-16-bit-rgb", _png16(2, (65535, 0, 0), (0, 0, 65535)), RED, BLUE, 0),
        Sample("png-16-bit-rgba", _png16(6, (65535, 0, 0, 65535), (0, 0, 65535, 0)), RED, WHITE, 0),
        Sample("webp-rgb", save(rgb, "WEBP", quality=95), RED, BLUE, 6),
        Sample("webp-lossless-rgba", save(rgba, "WEBP", lossless=True), RED, WHITE, 0),
        Sample("webp-animated", _animated("WEBP", lossless=True), RED, BLUE, 0),
        Sample("gif", save(rgb, "GIF"), RED, BLUE, 0),
        Sample("gif-animated", _animated("GIF"), RED, BLUE, 0),
        Sample("gif-transparent", save(rgba, "GIF"), RED, WHITE, 0),
        Sample("bmp-rgb", save(rgb, "BMP"), RED, BLUE, 0),
        Sample("bmp-grayscale", save(grey, "BMP"), light, dark, 0),
        Sample("bmp-bilevel", save(halves(1, 0, "1"), "BMP"), WHITE, BLACK, 0),
        Sample("bmp-palette", save(palette, "BMP"), RED, BLUE, 0),
        Sample("tiff-rgb", save(rgb, "TIFF"), RED, BLUE, 0),
        Sample("tiff-lzw", save(rgb, "TIFF", compression="tiff_lzw"), RED, BLUE, 0),
        Sample("tiff-jpeg", save(rgb, "TIFF", compression="jpeg"), RED, BLUE),
        Sample("tiff-several-pages", _animated("TIFF"), RED, BLUE, 0),
        Sample("tiff-bilevel", save(halves(1, 0, "1"), "TIFF", compression="group4"), WHITE, BLACK, 0),
        Sample("tiff-grayscale", save(grey, "TIFF"), light, dark, 0),
        Sample("tiff-grayscale-alpha", save(halves((200, 255), (50, 0), "LA"), "TIFF"), light, WHITE, 0),
        Sample("tiff-palette", save(palette, "TIFF"), RED, BLUE, 0),
        Sample("tiff-palette-with-alpha", save(_palette_with_alpha(), "TIFF"), RED, WHITE, 0),
        Sample("tiff-rgba", save(rgba, "TIFF"), RED, WHITE, 0),
        Sample("tiff-cmyk", save(rgb.convert("CMYK"), "TIFF"), RED, BLUE, 0),
        Sample("tiff-ycbcr", save(rgb.convert("YCbCr"), "TIFF"), RED, BLUE, 2),
        Sample("tiff-lab", save(_to_lab(rgb, lab), "TIFF"), RED, BLUE, 25),
        Sample("tiff-16-bit", save(halves(51400, 12850, "I;16"), "TIFF"), light, dark, 0),
        Sample("tiff-16-bit-big-endian", save(halves(51400, 12850, "I;16B"), "TIFF"), light, dark, 0),
        Sample("tiff-32-bit-of-8", save(halves(200, 50, "I"), "TIFF"), light, dark, 0),
        Sample("tiff-32-bit-of-16", save(halves(51400, 12850, "I"), "TIFF"), light, dark, 0),
        Sample("tiff-32-bit", save(halves(2_000_000_000, 0, "I"), "TIFF"), WHITE, BLACK, 0),
        Sample("tiff-float", save(halves(0.75, -0.25, "F"), "TIFF"), WHITE, BLACK, 0),
        Sample("tiff-float-constant", save(halves(0.5, 0.5, "F"), "TIFF"), BLACK, BLACK, 0),
        Sample("ico", save(halves(size=(64, 64)), "ICO", sizes=[(64, 64)]), RED, BLUE, 0),
        Sample("ico-bmp-rgba", save(rgba, "ICO", sizes=[(64, 32)], bitmap_format="bmp"), RED, WHITE, 0),
        Sample("ppm", save(rgb, "PPM"), RED, BLUE, 0),
        Sample("pgm", save(grey, "PPM"), light, dark, 0),
        Sample("pbm", save(halves(1, 0, "1"), "PPM"), WHITE, BLACK, 0),
        Sample("pgm-16-bit", save(halves(51400, 12850, "I"), "PPM"), light, dark, 0),
    ]
    if HAS_AVIF:
        found += [
            Sample("avif", save(rgb, "AVIF", quality=90, speed=10), RED, BLUE, 8),
            Sample("avif-rgba", save(rgba, "AVIF", quality=90, speed=10), RED, WHITE, 8),
        ]
    return found


def broken() -> list[Broken]:
    """What people and attackers send instead of a picture."""
    whole = jpeg(width=200, height=200)
    photo, grey = noise(64, 64), noise(64, 64).convert("L")
    no_picture = r"^received \d+ bytes that are no picture \(they begin with b'.*\); " + ACCEPTED + "$"
    named = "^received {}; " + ACCEPTED + "$"
    cut_off = r"^received a {} picture of 64 × 64 px that is broken or cut off \(.+\); send the whole file, " + ACCEPTED
    found = [
        Broken("empty", b"", "InvalidImage", 400, rf"^received an empty picture \(0 bytes\); {ACCEPTED}$"),
        Broken(
            "truncated",
            whole[: len(whole) // 2],
            "InvalidImage",
            400,
            r"^received a JPEG picture of 200 × 200 px that is broken or cut off "
            r"\(image file is truncated \(\d+ bytes not processed\)\); send the whole file, " + ACCEPTED + "$",
        ),
        Broken("one-byte", b"\xff", "InvalidImage", 400, no_picture),
        Broken("text", b"this is no picture\n", "InvalidImage", 400, no_picture),
        Broken(
            "html", b"<!doctype html><html><body>404</body></html>", "InvalidImage", 400, named.format("a page of HTML")
        ),
        Broken(
            "svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "InvalidImage", 400, named.format("an SVG drawing")
        ),
        Broken("pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "InvalidImage", 400, named.format("a PDF document")),
        Broken("zip", b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(40), "InvalidImage", 400, named.format("a packed archive")),
        Broken("random", np.random.default_rng(1).bytes(5000), "InvalidImage", 400, no_picture),
        Broken("zeros", bytes(5000), "InvalidImage", 400, no_picture),
        Broken("jpeg-header-only", whole[:20], "InvalidImage", 400, r"^received .*; " + ACCEPTED + "$"),
        Broken("png-header-only", b"\x89PNG\r\n\x1a\n", "InvalidImage", 400, r"^received .*; " + ACCEPTED + "$"),
        Broken(
            "icon-without-picture", b"\0\0\1\0\1\0" + bytes(40), "InvalidImage", 400, r"^received .*; " + ACCEPTED + "$"
        ),
        Broken(
            "png-wrong-checksum", _flip(save(photo, "PNG"), b"IDAT", 10), "InvalidImage", 400, cut_off.format("PNG")
        ),
    ]
    formats: dict[str, Callable[[], bytes]] = {
        "PNG": lambda: save(photo, "PNG"),
        "GIF": lambda: save(photo, "GIF"),
        "BMP": lambda: save(photo, "BMP"),
        "TIFF": lambda: save(photo, "TIFF"),
        "PPM": lambda: save(grey, "PPM"),
    }
    for name, make in formats.items():
        data = make()
        found.append(
            Broken(f"{name.lower()}-truncated", data[: len(data) * 2 // 3], "InvalidImage", 400, cut_off.format(name))
        )
    late = {
        "WEBP": save(photo, "WEBP"),
        "ICO": save(photo, "ICO"),
        "TIFF-lzw": save(photo, "TIFF", compression="tiff_lzw"),  # its directory lies at its end
    }
    if HAS_AVIF:
        late["AVIF"] = save(photo, "AVIF", speed=10)
    found += [  # what is wrong with these shows as they are opened
        Broken(
            f"{name.lower()}-truncated",
            data[: len(data) * 2 // 3],
            "InvalidImage",
            400,
            rf"^received .*; (send the whole file, )?{ACCEPTED}$",
        )
        for name, data in late.items()
    ]
    return found


def _index(palette: Image.Image, right: bool) -> int:
    return palette.tobytes()[WIDTH - 1 if right else 0]


def _alphas(palette: Image.Image) -> bytes:
    """One alpha a palette entry, which Pillow keeps as bytes: the left colour opaque, the right one half."""
    return bytes(128 if i == _index(palette, right=True) else 255 for i in range(2))


def _png16(colour_type: int, left: tuple[int, ...], right: tuple[int, ...]) -> bytes:
    pixels = left * (WIDTH // 2) + right * (WIDTH // 2)
    row = b"\0" + struct.pack(f">{len(pixels)}H", *pixels)
    return png(WIDTH, HEIGHT, 16, colour_type, row * HEIGHT)


def _animated(picture_format: str, **options: Any) -> bytes:
    return save(halves(), picture_format, save_all=True, append_images=[halves(BLUE, RED)], **options)


def _palette_with_alpha() -> Image.Image:
    image = halves().convert("PA")
    alpha = halves(255, 0, "L")
    image.putalpha(alpha)
    return image


def _to_lab(image: Image.Image, lab: Any) -> Image.Image:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    return ImageCms.applyTransform(image, to_lab) or image  # None only where it works in place


def _flip(data: bytes, after: bytes, offset: int) -> bytes:
    """``data`` with one byte changed, ``offset`` bytes after the first ``after``."""
    at = data.index(after) + len(after) + offset
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
