"""Which model is served: torchvision's ImageNet weights, the bundled model, or one that was trained here.

    --weights auto | imagenet | bundled | FOLDER  →  a checked model folder

``index_to_name.json`` at the root of the repository is written by

    python3 -c "from scripts.lib.weights import write_imagenet_labels as w; w()"
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from handler.card import ARCHITECTURES, CardError, ModelCard, sha256_of
from scripts.lib import paths
from scripts.lib.console import CommandError, say
from scripts.lib.download import DownloadError, download, has_hash, locked
from scripts.lib.model_folder import (
    CARD,
    LABELS,
    WEIGHTS,
    ModelFolder,
    json_bytes,
    read_json,
    read_model_folder,
    write_atomically,
    write_model_folder,
)

MIRROR = "DENSENET_WEIGHTS_MIRROR"
"""Environment variable: a base URL or a local folder that holds torchvision's weights files under their names."""
DIGEST = "DENSENET_WEIGHTS_SHA256"
"""Environment variable: the whole SHA-256, in hex, that torchvision's weights file must have."""
DIGESTS = {
    # as several projects that don't know each other publish it; torchvision itself says its first 8 digits
    "densenet121-a639ec97.pth": "a639ec97d7c33b07ae66f0b5fb7d0192f95a3b11b7576c66c0126c2a727c4395",
}
"""The whole SHA-256 of torchvision's weights files, where it is known."""
AUTO_FIRST_BYTE_S = 10.0
"""Seconds that ``auto`` waits for the first byte of a download before it takes the bundled model."""
FULL = 64
"""Hex digits of a whole SHA-256."""
DEFAULT_ARCH = "densenet121"
ACCEPTED = f"imagenet, bundled, auto, or a folder that train.py wrote ({WEIGHTS}, {LABELS} and {CARD})"
"""What ``--weights`` takes."""


@dataclass(frozen=True)
class Published:
    """What torchvision says of its ImageNet weights of one architecture.

    ``url``: where they are. ``sha256``: the first digits of the file's hash (part of its name).
    ``labels``: of the 1000 classes. ``top1``, ``top5``: accuracy on ImageNet's validation pictures, 0 to 1.
    """

    url: str
    sha256: str
    labels: tuple[str, ...]
    top1: float
    top5: float

    @property
    def file_name(self) -> str:
        """The file's name, such as ``densenet121-a639ec97.pth``."""
        return self.url.rpartition("/")[2]


def published(arch: str) -> Published:
    """What torchvision publishes for ``arch``, one of the four names in ``ARCHITECTURES``.

    Raises:
        CommandError: there are no ImageNet weights of that name.
    """
    if arch not in ARCHITECTURES:
        raise CommandError(f"there are no ImageNet weights for {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    from torchvision.models import get_model_weights

    entry = get_model_weights(arch)["IMAGENET1K_V1"]
    percent = entry.meta["_metrics"]["ImageNet-1K"]
    return Published(
        url=entry.url,
        sha256=entry.url.rpartition("-")[2].removesuffix(".pth"),
        labels=tuple(entry.meta["categories"]),
        top1=round(percent["acc@1"] / 100, 5),
        top5=round(percent["acc@5"] / 100, 5),
    )


def imagenet_weights(arch: str, *, first_byte_timeout: float = 30) -> Path:
    """torchvision's own weights file of ``arch``: from the cache, from torch's cache, or downloaded.

    Args:
        arch: densenet121, densenet161, densenet169 or densenet201.
        first_byte_timeout: seconds in all that a download may take to its first byte.

    Returns:
        The file; its hash has been checked just now.

    Raises:
        CommandError: it can't be had, or there are no such weights.
    """
    import torch

    source = published(arch)
    sha256, target = _expected(source), _cached(source)
    for there in (target, Path(torch.hub.get_dir()) / "checkpoints" / source.file_name):
        if has_hash(there, sha256):
            return there
    address = _address(source)
    if len(sha256) < FULL and address != source.url and not address.startswith("file:"):
        raise CommandError(
            f"of {source.file_name} torchvision says 8 digits of its SHA-256 alone, which whoever runs a mirror can "
            f"forge; set {DIGEST} to the whole one, which is printed where the file comes from torchvision, or unset "
            f"{MIRROR}"
        )
    file = download(
        [address],
        target,
        sha256,
        what=f"torchvision's weights file {source.file_name}",
        first_byte_timeout=first_byte_timeout,
        instead=f"set {MIRROR} to a URL or a folder that holds {source.file_name}",
    )
    found = sha256_of(file)
    write_atomically(_record(source), f"{found}\n".encode())
    say(f"weights: {source.file_name}, SHA-256 {found}")
    return file


def _cached(source: Published) -> Path:
    return paths.CACHE / "imagenet" / source.file_name


def _record(source: Published) -> Path:
    """The file with the whole SHA-256 of what was downloaded first: the next download must be the same."""
    return _cached(source).with_suffix(".sha256")


def _expected(source: Published) -> str:
    """The SHA-256 that the weights file must have: whole, as far as anybody knows it, else its first digits.

    Raises:
        CommandError: the one in ``DENSENET_WEIGHTS_SHA256`` can't be that file's.
    """
    given = os.environ.get(DIGEST, "").strip().lower()
    if given and not (re.fullmatch(rf"[0-9a-f]{{{FULL}}}", given) and given.startswith(source.sha256)):
        raise CommandError(
            f"{DIGEST}={given} isn't the SHA-256 of {source.file_name}: expected {FULL} hex digits that begin with "
            f"{source.sha256}; correct or unset it"
        )
    record = _record(source)
    return (
        given
        or DIGESTS.get(source.file_name)
        or (record.read_text(encoding="ascii").strip() if record.is_file() else source.sha256)
    )


def _address(source: Published) -> str:
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror:
        return source.url
    if "://" in mirror:
        return f"{mirror.rstrip('/')}/{source.file_name}"
    return (Path(mirror).expanduser().resolve() / source.file_name).as_uri()


def imagenet_model(arch: str, *, first_byte_timeout: float = 30) -> ModelFolder:
    """torchvision's ImageNet model of ``arch`` as a model folder in the cache, converted at first use.

    Args:
        arch: densenet121, densenet161, densenet169 or densenet201.
        first_byte_timeout: seconds in all that a download may take to its first byte.

    Raises:
        CommandError: the weights can't be had, or ``index_to_name.json`` isn't torchvision's.
        CardError: the weights file doesn't hold a DenseNet of that architecture.
    """
    source = published(arch)
    _check_imagenet_labels(source)
    folder = paths.CACHE / "models" / f"{arch}-imagenet"
    if model := _converted(folder, arch, source):
        return model
    with locked(folder, f"the {arch} model is being prepared by another process; waiting for it"):
        if model := _converted(folder, arch, source):  # the other process has done it
            return model
        return _convert(imagenet_weights(arch, first_byte_timeout=first_byte_timeout), folder, arch, source)


def _converted(folder: Path, arch: str, source: Published) -> ModelFolder | None:
    """The model in ``folder``, if it is whole and just what a conversion would give now."""
    try:
        model = read_model_folder(folder)
    except (CardError, OSError):
        return None
    origin = str(model.card.training.get("source_sha256", ""))
    wanted = dataclasses.replace(_card(arch, source, origin), weights_sha256=model.card.weights_sha256)
    return model if origin.startswith(_expected(source)) and model.card == wanted else None


def _convert(weights: Path, folder: Path, arch: str, source: Published) -> ModelFolder:
    from handler.network import build_network, fit_weights, read_weights

    card = _card(arch, source, sha256_of(weights))
    state = read_weights(weights)
    fit_weights(build_network(card.architecture, card.num_classes), state, f"the weights in {weights.name}")
    part = folder.with_name(folder.name + ".part")
    try:
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        model = write_model_folder(part, state, card, source.labels)
        part.replace(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CommandError(
            f"the {arch} model can't be written to {folder}: {error.strerror or error}; "
            "free space there, make it writable, or set DENSENET_CACHE to another folder"
        ) from error
    return dataclasses.replace(model, path=folder)


def _card(arch: str, source: Published, source_sha256: str) -> ModelCard:
    return ModelCard(
        name=f"{arch}-imagenet",
        architecture=ARCHITECTURES[arch],
        num_classes=len(source.labels),
        resize=256,
        crop=224,
        dataset="ImageNet-1k (ILSVRC 2012)",
        licence="BSD-3-Clause (torchvision weights; ImageNet terms apply to the data)",
        accuracy={"imagenet-val": {"top1": source.top1, "top5": source.top5, "source": "torchvision"}},
        training={"source": source.file_name, "source_sha256": source_sha256},
    )


def write_imagenet_labels(path: Path | None = None) -> None:
    """Write torchvision's ImageNet labels by index to ``path`` (``index_to_name.json`` of the repository)."""
    labels = published(DEFAULT_ARCH).labels
    write_atomically(path or paths.ROOT / LABELS, json_bytes({str(i): label for i, label in enumerate(labels)}))


def _check_imagenet_labels(source: Published) -> None:
    """Raise CommandError unless the repository's labels are torchvision's, one by one."""
    path = paths.ROOT / LABELS
    try:
        found = read_json(path)
    except CardError as error:
        raise CommandError(f"{error}; restore it: git checkout {LABELS}") from error
    if not isinstance(found, dict):
        raise CommandError(
            f'{path} must map "0" to "{len(source.labels) - 1}" to a label each, is a {type(found).__name__}; '
            f"restore it: git checkout {LABELS}"
        )
    for index, label in enumerate(source.labels):
        if found.get(str(index)) != label:
            raise CommandError(
                f"{path} calls index {index} {found.get(str(index))!r}, torchvision's weights mean {label!r}; "
                f"restore the file (git checkout {LABELS}): a model with other labels carries its own"
            )


def bundled_model() -> ModelFolder:
    """The model that the repository carries.

    Raises:
        CommandError: it is missing or damaged.
    """
    try:
        return read_model_folder(paths.BUNDLED)
    except CardError as error:
        raise CommandError(
            f"the bundled model can't be used: {error}; restore it (git checkout model_store/bundled), "
            "or give --weights imagenet or a folder that train.py wrote"
        ) from error


def resolve_weights(spec: str, arch: str = DEFAULT_ARCH) -> ModelFolder:
    """The model that ``--weights`` and ``--arch`` name; never one with random weights.

    Args:
        spec: ``imagenet``, ``bundled``, ``auto`` (the first if it is in the cache or its first byte
            comes within 10 s, else the second; a line says which and why), or the path of a
            model folder or of a file in one.
        arch: which of torchvision's four DenseNets, for ``imagenet`` and ``auto``.

    Raises:
        CommandError: ``spec`` is none of these, or the model can't be had.
        CardError: torchvision's weights file doesn't hold the model it should (never for ``auto``).
    """
    if spec == "auto":
        return _auto(arch)
    if spec == "imagenet":
        return imagenet_model(arch)
    if arch != DEFAULT_ARCH:
        raise CommandError(
            f"--arch {arch} goes with --weights imagenet or auto, not with {spec!r}, which has an architecture of its "
            "own; leave --arch out"
        )
    return bundled_model() if spec == "bundled" else _own(spec)


def _auto(arch: str) -> ModelFolder:
    wanted = published(arch)  # a wrong name is an error, not a reason for another model
    try:
        model = imagenet_model(arch, first_byte_timeout=AUTO_FIRST_BYTE_S)
    except (CommandError, CardError) as error:
        reason = error.reason if isinstance(error, DownloadError) else str(error)
        why = f"torchvision's ImageNet {arch} isn't in the cache and can't be fetched ({reason})"
        try:
            bundled = bundled_model()
        except CommandError as missing:
            raise CommandError(f"there is no model to serve: {why}, and {missing}") from missing
        other = f"NOT the {arch} that --arch names, but " if arch != DEFAULT_ARCH else ""
        say(
            f"weights: {other}the bundled model ({len(bundled.labels)} labels), because {why}; "
            f"to get that one, give --weights imagenet when the internet is there, or set "
            f"{MIRROR} to a URL or a folder that holds {wanted.file_name}"
        )
        return bundled
    say(
        f"weights: torchvision's ImageNet {arch} ({len(model.labels)} labels), because it is in the cache "
        f"({paths.CACHE}); for the model that this repository carries, give --weights bundled"
    )
    return model


def _own(spec: str) -> ModelFolder:
    """The model in a folder of the user's, named by itself or by a file in it."""
    path = Path(spec).expanduser()
    if not spec or not path.exists():
        raise CommandError(f"--weights {spec!r}: there is no such file or folder; accepted are {ACCEPTED}")
    if path.is_file():
        if path.name not in (WEIGHTS, LABELS, CARD):
            raise CommandError(
                f"--weights {spec!r}: a weights file alone doesn't say what its outputs mean; accepted are {ACCEPTED}; "
                "to go on from these weights, give them to train.py as --start"
            )
        path = path.parent
    try:
        return read_model_folder(path)
    except (CardError, OSError) as error:
        raise CommandError(f"--weights {spec!r}: {error}; accepted are {ACCEPTED}") from error
