"""ICC profiles made by hand, for what Pillow doesn't write (ICC.1:2022)."""

from __future__ import annotations

import struct


def _xyz(*values: float) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *(round(value * 65536) for value in values))


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, content = b"", b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(content), len(value))
        content += value
    head = struct.pack(">II4s4s4s4s", 132 + len(table) + len(content), 0, b"\2\x10\0\0", b"prtr", space, connection)
    return (head + bytes(12) + b"acsp").ljust(68, b"\0") + _xyz(0.9642, 1, 0.8249)[8:] + bytes(48) + struct.pack(
        ">I", len(tags)
    ) + table + content  # fmt: skip


def grey(gamma: float) -> bytes:
    """Of grey pictures with this exponent."""
    curve = struct.pack(">4sIIH2x", b"curv", 0, 1, round(gamma * 256))
    return _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(0.9642, 1, 0.8249), b"kTRC": curve})


def press(black: int) -> bytes:
    """Of CMYK pictures: each ink takes the lightness to ``black`` (0 to 255 of L* 100), and no colour comes of it."""
    ramp = bytes(range(256))
    corners = b"".join(bytes((255 if not inks else black, 128, 128)) for inks in range(16))  # L*, a*, b* of lut8
    unit = struct.pack(">9i", *(65536 if at % 4 == 0 else 0 for at in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + unit + ramp * 4 + corners + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"wtpt": _xyz(0.9642, 1, 0.8249), b"A2B0": table})
