"""Picture bytes → RGB image: decode what people send, refuse what could harm the worker."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    ImageMath,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from handler.errors import ImageTooLarge, InvalidImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "PPM")
"""Pillow's names of the formats that are tried; JPEG includes MPO, as cameras write it.

The plugins are imported above: Pillow then doesn't load its forty others, which stay off (EPS, for
one, would run Ghostscript).
"""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what sets the picture upright (CIPA DC-008, tag 0x0112)."""
_SWAPS_SIDES = frozenset(method for orientation, method in _UPRIGHT.items() if orientation >= 5)
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
"""Bytes that Pillow keeps a pixel, by mode; 4 in all others."""
_DECODERS = {"WEBP": 17, "AVIF": 13}
"""Bytes a pixel where the decoder keeps the picture several times."""
STRIP = 256
"""Rows that are laid over white at a time."""
_ICON = b"\0\0\1\0"
ACCEPTED = "accepted are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, ICO and PPM pictures"

_PLUGINS = (
    *(AvifImagePlugin, BmpImagePlugin, GifImagePlugin, IcoImagePlugin, JpegImagePlugin),
    *(PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin),
)


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The picture in ``data`` as people see it: upright, RGB, transparency over white.

    Of a file with several frames, the first. EXIF orientation is applied.

    Args:
        data: the bytes of a picture file in one of FORMATS.
        max_pixels: width times height at most; checked before a pixel is decoded.

    Returns:
        An image of mode RGB, 0 to 255 a channel.

    Raises:
        InvalidImage: the bytes are empty, no picture, or a broken or cut-off one.
        ImageTooLarge: the picture has more than ``max_pixels`` pixels.
    """
    return decode_reduced(data, max_pixels, None)[0]


def decode_reduced(data: bytes, max_pixels: int, enough: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """As :func:`decode`, but a JPEG may come smaller: less work, the smaller the picture that is wanted.

    A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size: what takes most of the time, the inverse
    cosine transform, is then done for the smaller picture alone.

    Args:
        data, max_pixels: as for :func:`decode`.
        enough: px that both sides keep at least; None: the full size.

    Returns:
        The image, and width and height of the whole picture: those of the image, or 2, 4 or 8 times
        as much, but for what a side was rounded up that doesn't divide.

    Raises:
        InvalidImage, ImageTooLarge: as :func:`decode`.
    """
    return load_reduced(open_picture(data, max_pixels), max_pixels, enough)


def open_picture(data: bytes, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """A picture of which nothing but the head was read; an icon is decoded.

    Args:
        data, max_pixels: as for :func:`decode`.
        formats: those of FORMATS that are tried.

    Raises:
        InvalidImage, ImageTooLarge: as :func:`decode`, but for what the head doesn't show.
    """
    if not data:
        raise InvalidImage(f"received an empty picture (0 bytes); {ACCEPTED}")
    try:
        with warnings.catch_warnings():
            # Pillow warns of oversized or odd files; the checks below decide, not the log
            warnings.simplefilter("ignore")
            if data.startswith(_ICON):
                _check_icon(data, max_pixels)
            image = Image.open(io.BytesIO(data), formats=formats)
    except ImageTooLarge:
        raise
    except UnidentifiedImageError:
        raise InvalidImage(f"received {len(data)} bytes that are no picture ({_begin(data)}); {ACCEPTED}") from None
    except Image.DecompressionBombError:
        raise _beyond_pillow(max_pixels) from None
    except Exception as error:  # a hostile header can make any parser of Pillow fail in any way
        raise InvalidImage(f"received a picture with a broken header ({_reason(error)}); {ACCEPTED}") from None
    _check_size(image, max_pixels)
    return image


def load_reduced(
    image: Image.Image, max_pixels: int, enough: int | None, reserve: Callable[[int], None] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The second half of :func:`decode_reduced`: decode what :func:`open_picture` opened, which is used up.

    Args:
        image: the open picture.
        max_pixels, enough: as for :func:`decode_reduced`.
        reserve: is told how many bytes of memory decoding takes, before a pixel is decoded; it may raise ImageTooLarge.

    Raises:
        InvalidImage, ImageTooLarge: as :func:`decode`.
    """
    width, height = image.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if enough is not None:
                image.draft(image.mode, (enough, enough))  # without effect but on a JPEG
            if reserve is not None:
                reserve(decoding_bytes(image, width * height))
            image.load()
            vars(image).pop("_decoder", None)  # of WebP and AVIF: it holds the picture twice more
            turn = _turn(image)
            if turn is not None:
                whole, image = image, image.transpose(turn)
                whole.close()  # the caller still has it
            return _to_rgb(image), (height, width) if turn in _SWAPS_SIDES else (width, height)
    except Image.DecompressionBombError:
        raise _beyond_pillow(max_pixels) from None
    except (MemoryError, ImageTooLarge):
        raise
    except Exception as error:  # OSError (cut off), and what else a decoder meets in broken data
        raise InvalidImage(
            f"received a {image.format} picture of {width} × {height} px that is broken or cut off "
            f"({_reason(error)}); send the whole file, {ACCEPTED}"
        ) from None


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"received a {image.format} picture of {width} × {height} px = {width * height:,} pixels; "
            f"accepted are at most {max_pixels:,} pixels"
        )


def decoding_bytes(image: Image.Image, pixels: int) -> int:
    """About how much memory it takes to decode an open picture and make it RGB; measured with Pillow 13.

    Args:
        image: as :func:`open_picture` gives it, or reduced by ``draft``.
        pixels: width times height of the whole picture.
    """
    stored = _STORED.get(image.mode, 4)
    if image.mode.startswith(("I", "F")):
        stored += 11
    elif image.mode != "RGB" or "transparency" in image.info:
        stored += 5
    held = image.width * image.height * max(stored, _DECODERS.get(image.format or "", 0))
    if image.info.get("progressive"):  # its coefficients, 2 bytes each, are all there before the first pixel
        sampled = [h * v for _, h, v, _ in getattr(image, "layer", ())]
        held += 2 * pixels * sum(sampled) // max(sampled, default=1)
    return held


def _check_icon(data: bytes, max_pixels: int) -> None:
    """Refuse an icon that holds too large a picture: Pillow decodes icons as it opens them."""
    largest = IcoImagePlugin.IcoFile(io.BytesIO(data)).entry[0]  # the one that Pillow will take
    _check_size(Image.open(io.BytesIO(data[largest.offset :]), formats=("PNG", "DIB")), max_pixels)


def _beyond_pillow(max_pixels: int) -> ImageTooLarge:
    """The answer where Pillow refuses by itself, above twice its MAX_IMAGE_PIXELS."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return ImageTooLarge(
        f"received a picture of more than {limit:,} pixels; accepted are at most {min(limit, max_pixels):,} pixels"
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets the image upright, as its EXIF orientation says.

    Not ImageOps.exif_transpose: it writes the EXIF block anew, which fails on many a camera's.
    """
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF says nothing about the pixels
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # 16 bits a pixel: keep the upper 8
        image = ImageMath.lambda_eval(lambda a: a["image"] / 256, image=image.convert("I"))
        return image.convert("L").convert("RGB")
    if image.mode == "I":  # 32 bits to hold 8, 16 or more: the largest value tells
        _, high = image.getextrema()
        if high > 65535:  # type: ignore[operator]  # a number in this mode
            image = image.convert("F")
        elif high > 255:  # type: ignore[operator]
            image = ImageMath.lambda_eval(lambda a: a["image"] / 256, image=image)
    if image.mode == "F":  # no defined range: spread what is there over 0 to 255
        low, high = image.getextrema()
        span = (high - low) or 1.0  # type: ignore[operator]  # numbers in this mode
        image = image.point(lambda v: v * (255 / span) + (-low * 255 / span))  # type: ignore[operator]
        return image.convert("L").convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGB", image.size, (255, 255, 255))
        for top in range(0, image.height, STRIP):  # a large picture isn't held a third and a fourth time
            strip = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
            white.paste(strip, (0, top), strip)
        return white
    return image.convert("RGB")


def _begin(data: bytes) -> str:
    return f"they begin with {bytes(data[:12])!r}"


def _reason(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0][:120] if text and text[0] else type(error).__name__
