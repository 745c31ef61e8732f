"""Colours of a picture file → sRGB, as a browser shows them.

::

    ICC profile ────────────────┐
    cICP (PNG), nclx (AVIF, HEIF) ─▶ an ICC profile ─▶ transform, cached ─▶ sRGB
    gAMA and cHRM (PNG) ────────┘

What the file says decides in this order. A profile that is broken, of another colour space than the
pixels, or sRGB itself changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from handler.errors import InvalidImage, with_article

LARGEST = 4 * 2**20
"""Bytes of a profile that is read; those of printing presses have 0.5 to 3 MB."""
SMALL = 4096
"""Bytes of a profile that consists of a matrix and curves, as cameras and phones write it."""
SAME = 3
"""Levels of 255 that a transform may be off everywhere for its profile to be taken for sRGB."""
_KEPT = 4
"""Transforms; a server sees few profiles, and one of CMYK takes 2 MB."""
_transforms: dict[bytes, ImageCms.ImageCmsTransform | None] = {}

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""ICC's signature of a colour space (ICC.1:2022, table 19) to Pillow's mode."""
_D65, _DCI = (0.3127, 0.3290), (0.314, 0.351)
_PRIMARIES = {
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),  # BT.2020
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_DCI),  # DCI P3
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),  # Display P3
}
"""Chromaticities (x, y) of red, green, blue and white, by ColourPrimaries of ITU-T H.273, table 2; others: sRGB's."""
_SRGB = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *_D65)
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
"""TransferCharacteristics of ITU-T H.273, table 3; others: sRGB's curve, as browsers have it."""
_HDR = {16: "PQ", 18: "HLG"}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
"""XYZ to the responses of the eye's cones (ICC.1:2022, annex E)."""
_D50 = np.array([0.9642, 1.0, 0.8249])
_SRGB_CURVE = struct.pack(">4sIHH5i", b"para", 0, 3, 0, *(round(v * 65536) for v in (
    2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045,
)))  # fmt: skip
"""sRGB's, as a parametric curve of type 3 (IEC 61966-2-1)."""


class Coded(NamedTuple):
    """Code points of ITU-T H.273, as cICP and nclx carry them: primaries and transfer."""

    primaries: int
    transfer: int


def profile_of(image: Image.Image, coded: Coded | None = None) -> bytes:
    """The ICC profile of an open picture, b"" where its colours are sRGB's, or nothing is said of them.

    Args:
        image: as Pillow opened it.
        coded: what the file says in code points.

    Raises:
        InvalidImage: it is in HDR, which no table of a profile holds.
    """
    icc = image.info.get("icc_profile")
    if coded and (image.format == "PNG" or not icc):  # PNG's cICP goes before its iCCP
        if coded.transfer in _HDR:
            name = with_article(image.format or "")
            raise InvalidImage(
                f"received {name} picture in HDR ({_HDR[coded.transfer]}), which isn't read; "
                "save it in standard dynamic range (SDR)"
            )
        if coded.primaries not in _PRIMARIES and coded.transfer not in _GAMMAS:
            return b""
        return matrix_profile(_PRIMARIES.get(coded.primaries, _SRGB), _GAMMAS.get(coded.transfer))
    if isinstance(icc, bytes):
        return icc if len(icc) <= LARGEST else b""
    gamma = image.info.get("gamma")
    if image.format != "PNG" or not gamma or "srgb" in image.info or not 0.1 <= gamma <= 10:
        return b""
    white, *primaries = np.reshape(image.info.get("chromaticity", (*_SRGB[6:], *_SRGB[:6])), (4, 2)).tolist()
    corners = tuple(value for point in (*primaries, white) for value in point)
    # 1/2.2 is how sRGB is written where nothing better could be said
    return matrix_profile(corners, None if abs(gamma * 2.2 - 1) < 0.01 else 1 / gamma)


def is_small(profile: bytes) -> bool:
    """Whether a profile is a matrix and curves at most: nothing that takes time, or is hard to parse."""
    return len(profile) <= SMALL and profile[16:20] != b"CMYK" and b"A2B" not in profile


def changes(profile: bytes) -> bool:
    """Whether the colours of a picture with this profile aren't sRGB's."""
    return bool(profile) and _transform(profile) is not None


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture in sRGB; the same one if ``profile`` says nothing of its pixels.

    Args:
        image: of mode RGB or CMYK; one of mode RGB is changed.
        profile: ICC's, or b"".
    """
    transform = _transform(profile)
    if transform is None or (transform.input_mode == "CMYK") != (image.mode == "CMYK"):
        return image
    if transform.input_mode == "RGB":
        ImageCms.applyTransform(image, transform, inPlace=True)
        return image
    grey_or_cmyk = image.convert(transform.input_mode)
    return ImageCms.applyTransform(grey_or_cmyk, transform)  # type: ignore[return-value]  # None is for inPlace


def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB's; None if it is broken, or changes nothing."""
    digest = hashlib.sha256(profile).digest()
    if digest not in _transforms:
        built = _built(profile)
        while len(_transforms) >= _KEPT:
            _transforms.pop(next(iter(_transforms)), None)
        _transforms[digest] = built
    return _transforms[digest]


def _built(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    mode = _SPACES.get(profile[16:20])
    if mode is None:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        steps = np.linspace(0, 255, 6, dtype=np.uint8)
        shape = (-1, 1, len(mode)) if len(mode) > 1 else (-1, 1)
        grid = np.stack(np.meshgrid(*[steps] * len(mode)), axis=-1).reshape(shape)  # (6 ** channels, 1, channels)
        probe = Image.fromarray(np.ascontiguousarray(grid), mode)
        result = np.asarray(ImageCms.applyTransform(probe, transform), int)  # (6 ** channels, 1, 3)
    except (ImageCms.PyCMSError, ValueError, OSError):
        return None
    same = mode != "CMYK" and np.abs(result - np.asarray(probe.convert("RGB"), int)).max() <= SAME
    return None if same else transform


def matrix_profile(corners: tuple[float, ...], gamma: float | None) -> bytes:
    """An ICC profile of three primaries and one curve; b"" if there can be none.

    Args:
        corners: x and y of red, green, blue and white, by CIE 1931.
        gamma: exponent of the curve; None: sRGB's curve.
    """
    points = np.array(corners).reshape(4, 2)
    x, y = points.T
    if (y <= 0).any():
        return b""
    tristimulus = np.stack([x / y, np.ones(4), (1 - x - y) / y])  # (XYZ, corner)
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ tristimulus[:, 3])) @ _BRADFORD
    try:
        amounts = np.linalg.solve(tristimulus[:, :3], tristimulus[:, 3])
    except np.linalg.LinAlgError:
        return b""
    columns = adapt @ (tristimulus[:, :3] * amounts)  # (XYZ, primary), for D50
    if not np.abs(columns).max() < 2**15:  # also of what is undefined
        return b""
    curve = _SRGB_CURVE if gamma is None else struct.pack(">4sIHHi", b"para", 0, 0, 0, round(gamma * 65536))
    tags = [(b"wtpt", _xyz(_D50)), *((name, _xyz(column)) for name, column in zip(_COLUMNS, columns.T))]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, content = b"", b""
    for name, value in tags:
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(content), len(value))
        content += value
    size = 132 + len(table) + len(content)
    head = struct.pack(">II4s4s4s4s", size, 0, bytes.fromhex("04000000"), b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _xyz(_D50)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + content


_COLUMNS = (b"rXYZ", b"gXYZ", b"bXYZ")


def _xyz(values: object) -> bytes:
    numbers = np.asarray(values, float)
    return struct.pack(">4sI3i", b"XYZ ", 0, *np.round(numbers * 65536).astype(int).tolist())
