"""Real pictures with the labels that the bundled model gives them.

``../shared/data`` is optional; the pictures of well-known packages are always there.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.paths import ROOT

SHARED = ROOT.parent / "shared" / "data" / "images"


@dataclass(frozen=True)
class Golden:
    """A picture, the labels that count as right, and the range of the top probability."""

    name: str
    path: Path
    labels: frozenset[str]
    low: float
    high: float = 1.0


def _inside(package: str, *parts: str) -> Path:
    """A file of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} isn't installed"
    return Path(spec.origin).parent.joinpath(*parts)


CATS = frozenset(
    {
        *("Abyssinian", "Bengal", "Birman", "Bombay", "British Shorthair", "Egyptian Mau", "Maine Coon"),
        *("Persian", "Ragdoll", "Russian Blue", "Siamese", "Sphynx"),
    }
)
OTHER = frozenset({"neither cat nor dog"})

CHELSEA = _inside("skimage", "data", "chelsea.png")
PACKAGED = [
    Golden("chelsea", CHELSEA, CATS, 0.3),
    Golden("grace_hopper", _inside("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg"), OTHER, 0.5),
    Golden("flower", _inside("sklearn", "datasets", "images", "flower.jpg"), OTHER, 0.5),
]
DOG = SHARED / "dog.jpg"
GOLDEN = [
    *PACKAGED,
    *(
        golden
        for golden in (
            Golden("dog", DOG, frozenset({"Samoyed"}), 0.8),
            Golden("kitten", SHARED / "kitten.jpg", CATS, 0.3),
            Golden("croco", SHARED / "croco.jpg", OTHER, 0.4),
        )
        if golden.path.is_file()
    ),
]
