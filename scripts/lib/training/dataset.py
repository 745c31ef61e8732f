"""Labelled folders → checked pictures → training, validation and test split."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from handler.errors import RequestError
from handler.images import decode
from scripts.lib.console import CommandError, Progress, warn
from scripts.lib.model_folder import read_json
from scripts.lib.pictures import walk_pictures

MAX_PIXELS = 200_000_000
NEAR_DUPLICATE_BITS = 4
"""Pictures whose 64-bit difference hashes differ in at most this many bits stay on one side of a split."""


@dataclass(frozen=True)
class Picture:
    """A labelled picture: ``source`` is the name of the data folder, ``digest`` the SHA-256 of the file."""

    path: Path
    label: str
    source: str
    digest: str = ""
    dhash: int = 0


@dataclass(frozen=True)
class Split:
    """Three disjoint lists of pictures; no near-duplicate pair is on two sides."""

    train: list[Picture]
    val: list[Picture]
    test: list[Picture]

    def digest(self) -> str:
        """SHA-256, in hex, over the content and the label of each picture, and its side."""
        sides = [[(p.digest, p.label) for p in side] for side in (self.train, self.val, self.test)]
        return hashlib.sha256(repr(sides).encode()).hexdigest()


def picture_files(folder: Path) -> list[Path]:
    """The picture files below ``folder``, by suffix, sorted by path."""
    return list(walk_pictures(folder))


def find_pictures(sources: Sequence[str], labels: Mapping[str, str] | None = None) -> list[Picture]:
    """The pictures of ``sources``, not yet opened.

    Args:
        sources: folders with a folder per class; or ``CLASS=FOLDER``, where every picture below
            FOLDER belongs to CLASS. Classes of the same label in several sources are one class.
        labels: class folder → label; without it the folder's name is the label.

    Raises:
        CommandError: a folder is missing, holds no class folders, or a class is empty or unnamed.
    """
    pictures: list[Picture] = []
    for source in sources:
        name, _, folder = source.rpartition("=")
        root = Path(folder)
        if not root.is_dir():
            raise CommandError(f"no folder at {root}; expected a folder with one folder of pictures per class")
        classes = {name: root} if name else {d.name: d for d in sorted(root.iterdir()) if d.is_dir()}
        classes = {n: d for n, d in classes.items() if not n.startswith(".")}
        if not classes:
            raise CommandError(
                f"{root} has no class folders; expected one folder of pictures per class, e.g. {root}/cat/1.jpg"
            )
        for folder_name, class_folder in classes.items():
            if labels is not None and folder_name not in labels:
                raise CommandError(f"the labels file has no label for the class folder {class_folder}; add it")
            files = picture_files(class_folder)
            if not files:
                raise CommandError(f"the class folder {class_folder} holds no pictures; fill or remove it")
            label = folder_name if labels is None else labels[folder_name]
            pictures += [Picture(file, label, root.name) for file in files]
    found = {p.label for p in pictures}
    if len(found) < 2:
        raise CommandError(f"found one class only ({found.pop()!r}); a classifier needs at least two class folders")
    return pictures


def labelled(sources: Sequence[str], labels: Path | None) -> list[Picture]:
    """:func:`find_pictures` of a command's ``DATA`` and ``--labels``; none of no data."""
    return find_pictures(sources, read_json(labels) if labels else None) if sources else []


@dataclass(frozen=True)
class PublicDataset:
    """A public data set: ``name`` on the command line, ``folder`` under the cache, ``about`` for the card."""

    name: str
    folder: str
    about: str


OXFORD_PETS = PublicDataset("oxford-pets", "oxford-iiit-pet", "Oxford-IIIT Pet (CC BY-SA 4.0)")


def oxford_pets(cache: Path, labels: Mapping[str, str] | None = None) -> list[Picture]:
    """The 7,349 pictures of Oxford-IIIT Pet, both of its parts, downloaded by torchvision at the first call.

    Args:
        cache: the data set goes into a folder below it.
        labels: class as in the file names (``great_pyrenees``) → label; without it torchvision's names.

    Raises:
        CommandError: it can't be downloaded, or ``labels`` lacks a class.
    """
    from torchvision.datasets import OxfordIIITPet

    pictures: list[Picture] = []
    for part in ("trainval", "test"):
        try:
            found = OxfordIIITPet(str(cache), split=part, download=True)
        except (OSError, RuntimeError) as error:  # no network, a wrong MD5, an archive that is cut off
            raise CommandError(
                f"Oxford-IIIT Pet can't be downloaded: {error}; give the pictures as a folder instead, "
                f"or unpack images.tar.gz and annotations.tar.gz of the data set in {cache / OXFORD_PETS.folder}"
            ) from error
        for file, target in zip(found._images, found._labels):
            name = file.stem.rpartition("_")[0]
            if labels is not None and name not in labels:
                raise CommandError(f"the labels file has no label for the class {name} of Oxford-IIIT Pet; add it")
            label = found.classes[target] if labels is None else labels[name]
            pictures.append(Picture(file, label, OXFORD_PETS.name))
    return pictures


def check_pictures(pictures: Sequence[Picture]) -> list[Picture]:
    """Decode every picture once; return those that decode, with digest and hash.

    A broken picture is named in a warning and left out.

    Raises:
        CommandError: a class has fewer than two pictures that decode.
    """
    checked: list[Picture] = []
    broken = 0
    progress = Progress("checking pictures", len(pictures))
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for picture, result in zip(pictures, pool.map(_inspect, [p.path for p in pictures], chunksize=64)):
            progress.advance()
            if isinstance(result, str):
                broken += 1
                warn(f"left out {picture.path}: {result}")
            else:
                checked.append(Picture(picture.path, picture.label, picture.source, *result))
    if broken:
        warn(f"{broken} of {len(pictures)} pictures can't be read and are left out")
    counts = class_counts(checked)
    for label in sorted({p.label for p in pictures}):
        if counts.get(label, 0) < 2:
            raise CommandError(f"the class {label!r} has {counts.get(label, 0)} readable pictures; it needs at least 2")
    return checked


def _inspect(path: Path) -> tuple[str, int] | str:
    """Digest and difference hash of a picture file, or why it can't be read."""
    try:
        data = path.read_bytes()
        return hashlib.sha256(data).hexdigest(), difference_hash(decode(data, MAX_PIXELS))
    except (OSError, RequestError) as error:
        return str(error)


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash: is each of 8 × 8 cells darker than its right neighbour? (Krawetz, "Kind of Like That", 2013)."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)  # (8, 9)
    bits = (cells[:, :-1] < cells[:, 1:]).ravel()  # (64,)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicate_groups(hashes: Sequence[int], max_bits: int = NEAR_DUPLICATE_BITS) -> list[int]:
    """The group of each picture: pictures linked by a chain of near-duplicates share a number."""
    values = np.array(hashes, dtype=np.uint64)  # (N,)
    parent = list(range(len(values)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in range(len(values)):
        close = np.flatnonzero(np.bitwise_count(values[i + 1 :] ^ values[i]) <= max_bits)
        for j in close:
            parent[root(i + 1 + int(j))] = root(i)
    return [root(i) for i in range(len(values))]


def split_pictures(pictures: Sequence[Picture], val: float, test: float, seed: int) -> Split:
    """Split by class and source, near-duplicates together.

    The side of a group depends on the content of its pictures and on ``seed`` alone, so adding a
    class or moving a folder doesn't reshuffle the rest.

    Args:
        pictures: checked pictures.
        val, test: share of each side, 0 to 1; what remains is for training.
        seed: another seed, another split.
    """
    groups = near_duplicate_groups([p.dhash for p in pictures])
    members: dict[int, list[Picture]] = defaultdict(list)
    for group, picture in zip(groups, pictures):
        members[group].append(picture)
    strata: dict[tuple[str, str], list[list[Picture]]] = defaultdict(list)
    for group_members in members.values():
        first = min(group_members, key=lambda p: p.digest)
        strata[first.source, first.label].append(group_members)
    sides: dict[str, list[Picture]] = {"train": [], "val": [], "test": []}
    for stratum in strata.values():
        stratum.sort(key=lambda g: hashlib.sha256(f"{seed}:{min(p.digest for p in g)}".encode()).digest())
        total = sum(map(len, stratum))
        wanted = {"test": round(test * total), "val": round(val * total)}
        for group_members in stratum:
            side = next((s for s in ("test", "val") if wanted[s] >= len(group_members)), "train")
            if side != "train":
                wanted[side] -= len(group_members)
            sides[side] += group_members
    return Split(*(sorted(sides[side], key=lambda p: (p.label, p.digest)) for side in ("train", "val", "test")))


def class_counts(pictures: Iterable[Picture]) -> dict[str, int]:
    """Pictures per label."""
    counts: dict[str, int] = defaultdict(int)
    for picture in pictures:
        counts[picture.label] += 1
    return dict(sorted(counts.items()))
