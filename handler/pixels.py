"""Decoded pixels of any kind → RGB, as a browser shows them: 8 bits a channel, sRGB, over white."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from handler import colour

STRIP = 256
"""Rows that are laid over white at a time."""
BITS, COLOUR_MAP, PLANES = 258, 320, 284
"""Tags of TIFF 6.0: BitsPerSample, ColorMap, PlanarConfiguration."""
_LEVELS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""Of a PNG's stored pixels, the factor by which Pillow has scaled them, but not the transparent value."""
_WHITE = (255, 255, 255)


def stored_as(image: Image.Image) -> tuple[Any, tuple[int, int, int, int]]:
    """How pixels are stored, by Pillow's name, and the part of the picture that has any.

    Args:
        image: as it was opened: loading forgets it.
    """
    tiles = getattr(image, "tile", ())
    return (tiles[0].args, tiles[0].extents or (0, 0, *image.size)) if tiles else ("", (0, 0, *image.size))


def to_rgb(image: Image.Image, stored: tuple[Any, tuple[int, int, int, int]], profile: bytes) -> Image.Image:
    """A decoded picture as RGB.

    Args:
        image: of any mode.
        stored: of :func:`stored_as`.
        profile: of :func:`handler.colour.profile_of`.
    """
    kind, extents = stored
    transparent = image.info.get("transparency")
    if image.format == "PNG" and kind in _LEVELS and transparent is not None:
        scaled = np.multiply(transparent, _LEVELS[kind]).astype(int).tolist()
        image.info["transparency"] = tuple(scaled) if isinstance(scaled, list) else scaled
    if image.mode == "CMYK":  # before it becomes RGB, which loses its meaning
        image = colour.to_srgb(image, profile)
    rgb = _over_white(_eight_bits(image))
    if image.format == "GIF":
        left, top, right, bottom = extents
        for box in ((0, 0, left, rgb.height), (right, 0, *rgb.size), (0, 0, rgb.width, top), (0, bottom, *rgb.size)):
            if box[0] < box[2] and box[1] < box[3]:
                rgb.paste(_WHITE, box)
    return colour.to_srgb(rgb, profile)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture in a mode that Pillow makes RGB of by itself."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        values = np.asarray(image)  # (H, W) uint16
        bits = min(max(tags.get(BITS, (16,))[0], 8), 16)  # 12, of scanners and microscopes
        levels = (values >> (bits - 8)).astype(np.uint8)
        transparent = image.info.get("transparency")
        if transparent is not None:
            levels[values == transparent] = 255
        return Image.fromarray(levels)
    if image.mode in ("I", "F"):
        return Image.fromarray(_spread(np.array(image, np.float32), image.mode == "I"))
    if image.mode == "La":  # multiplied by its share already
        grey, share = image.split()
        return ImageChops.add(grey, ImageChops.invert(share))
    if image.mode == "P" and COLOUR_MAP in tags and max(tags[COLOUR_MAP]) < 256:  # 8 bits, where TIFF asks for 16
        image.putpalette(np.reshape(tags[COLOUR_MAP], (3, -1)).T.astype(np.uint8).tobytes())
    return image


def _spread(values: npt.NDArray[np.float32], whole: bool) -> npt.NDArray[np.uint8]:
    """Levels of 0 to 255 for values (H, W) without a defined range; ``whole``: 8 or 16 bits of them are possible."""
    sound = np.isfinite(values)
    if not sound.all():
        values[~sound] = values[sound].min() if sound.any() else 0
    low, high = float(values.min()), float(values.max())
    if whole and low >= 0 and high <= 65535:
        return (values / (256 if high > 255 else 1)).astype(np.uint8)
    values -= low
    values *= 255 / ((high - low) or 1.0)
    return values.astype(np.uint8)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, _WHITE)
    for top in range(0, image.height, STRIP):  # a large picture isn't held a third and a fourth time
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
        white.paste(strip, (0, top), strip)
    return white
