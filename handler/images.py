"""Picture bytes → RGB image: decode what people send, refuse what could harm the worker."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from handler import colour, formats, jpeg
from handler.errors import ImageTooLarge, InvalidImage, with_article
from handler.formats import ACCEPTED
from handler.pixels import BITS, PLANES, stored_as, to_rgb

Image.MAX_IMAGE_PIXELS = None  # each limit here is checked before a pixel is decoded
REDUCED = 8
"""How many times smaller a side of a JPEG can be decoded."""
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
_DECODERS = {"WEBP": 17, "AVIF": 13, "HEIF": 12}
"""Bytes a pixel where the decoder keeps the picture several times."""
_XMP = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Where Pillow looks for an orientation that browsers don't obey."""


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The picture in ``data`` as people see it: upright, RGB, transparency over white.

    Of a file with several frames, the first. EXIF orientation is applied.

    Args:
        data: the bytes of a picture file in one of :data:`handler.formats.FORMATS`, or HEIC.
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


@dataclass(frozen=True)
class Opened:
    """A picture of which nothing but the head was read; an icon is decoded.

    ``image``: as Pillow opened it. ``data``: the file. ``profile``: see :func:`handler.colour.profile_of`.
    """

    image: Image.Image
    data: bytes
    profile: bytes

    @property
    def is_jpeg(self) -> bool:
        """Whether it can be decoded at a reduced size, and lack its end."""
        return self.image.format in ("JPEG", "MPO")


def open_picture(data: bytes, max_pixels: int, tried: tuple[str, ...] = formats.FORMATS) -> Opened:
    """Look at the head of a picture.

    Args:
        data, max_pixels: as for :func:`decode`; a JPEG may have more, which :func:`load_reduced` checks.
        tried: those of :data:`handler.formats.FORMATS` that are tried.

    Raises:
        InvalidImage, ImageTooLarge: as :func:`decode`, but for what the head doesn't show.
    """
    if not data:
        raise InvalidImage(f"received an empty picture (0 bytes); {ACCEPTED}")
    try:
        with warnings.catch_warnings():
            # Pillow warns of oversized or odd files; the checks below decide, not the log
            warnings.simplefilter("ignore")
            data, coded = formats.mended(data)
            image = _opened(data, max_pixels, tried)
    except (ImageTooLarge, InvalidImage):
        raise
    except UnidentifiedImageError:
        what = formats.name_of(data) or f"{len(data)} bytes that are no picture ({_begin(data)})"
        raise InvalidImage(f"received {what}; {ACCEPTED}") from None
    except Exception as error:  # a hostile header can make any parser of Pillow fail in any way
        raise InvalidImage(f"received a picture with a broken header ({_reason(error)}); {ACCEPTED}") from None
    opened = Opened(image, data, colour.profile_of(image, coded))
    _check_size(image, max_pixels * (REDUCED**2 if opened.is_jpeg else 1))
    tags = getattr(image, "tag_v2", {})
    if tags.get(PLANES) == 2 and tags.get(BITS, (8,))[0] != 8:
        raise InvalidImage(
            f"received a TIFF picture of a kind that isn't read ({tags[BITS][0]} bits a channel, in planes apart); "
            f"{ACCEPTED}"
        )
    return opened


def _opened(data: bytes, max_pixels: int, tried: tuple[str, ...]) -> Image.Image:
    if formats.is_icon(data):
        icon = formats.Icon(data)
        _check_size(icon.head, max_pixels)  # Pillow decodes icons as it opens them
        return icon.decoded()
    if formats.is_heif(data):
        return formats.open_heif(data)
    try:
        return Image.open(io.BytesIO(data), formats=tried)
    except OSError:
        image = formats.bitfields(data, lambda *size: _check_pixels("BMP", size, size, max_pixels))
        if image is None:
            raise
        return image


def load_reduced(
    opened: Opened, max_pixels: int, enough: int | None, reserve: Callable[[int], None] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The second half of :func:`decode_reduced`: decode what :func:`open_picture` opened, which is used up.

    Args:
        opened: the open picture.
        max_pixels, enough: as for :func:`decode_reduced`.
        reserve: is told how many bytes of memory decoding takes, before a pixel is decoded; it may raise ImageTooLarge.

    Raises:
        InvalidImage, ImageTooLarge: as :func:`decode`.
    """
    image = opened.image
    width, height = image.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if enough is not None:
                image.draft(image.mode, (enough, enough))  # without effect but on a JPEG
            _check_pixels(image.format or "", (width, height), image.size, max_pixels)
            if reserve is not None:
                copies = 2 if image.format == "HEIF" else 0  # of the file, that its decoder makes
                reserve(decoding_bytes(image, width * height) + copies * len(opened.data))
            stored = stored_as(image)
            if opened.is_jpeg:
                image = jpeg.load(image, opened.data, enough)
            else:
                image.load()
            vars(image).pop("_decoder", None)  # of WebP and AVIF: it holds the picture twice more
            turn = _turn(image)
            if turn is not None:
                whole, image = image, image.transpose(turn)
                whole.close()  # the caller still has it
            if enough is not None and colour.changes(opened.profile):  # fewer pixels to convert
                image = image.reduce(max(min(image.size) // enough, 1))
            rgb = to_rgb(image, stored, opened.profile)
            return rgb, (height, width) if turn in _SWAPS_SIDES else (width, height)
    except (MemoryError, ImageTooLarge):
        raise
    except Exception as error:  # OSError (cut off), and what else a decoder meets in broken data
        raise InvalidImage(
            f"received {with_article(image.format or '')} picture of {width} × {height} px that is broken or cut off "
            f"({_reason(error)}); send the whole file, {ACCEPTED}"
        ) from None


def _check_size(image: Image.Image, max_pixels: int) -> None:
    _check_pixels(image.format or "", image.size, image.size, max_pixels)


def _check_pixels(name: str, size: tuple[int, int], decoded: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture of ``size`` of which more than ``max_pixels`` would be decoded."""
    (width, height), pixels = size, decoded[0] * decoded[1]
    if pixels > max_pixels:
        reduced = " where it is decoded at a reduced size" if decoded != size else ""
        raise ImageTooLarge(
            f"received {with_article(name)} picture of {width} × {height} px = {pixels:,} pixels{reduced}; "
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


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets the image upright, as its EXIF orientation says.

    Not ImageOps.exif_transpose: it writes the EXIF block anew, which fails on many a camera's.
    """
    for name in _XMP:
        image.info.pop(name, None)
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF says nothing about the pixels
        return None


def _begin(data: bytes) -> str:
    return f"they begin with {bytes(data[:12])!r}"


def _reason(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0][:120] if text and text[0] else type(error).__name__
