"""A model as OpenVINO's files: converted from PyTorch, in float32 checked against it, quantised where asked for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from handler.card import ModelCard
from handler.preprocessing import Preprocessing
from handler.runtimes import OPENVINO_FILES, OPENVINO_MODEL, Runtime, converted_sha256, load_runtime
from handler.runtimes.openvino_runtime import import_openvino
from scripts.lib import paths
from scripts.lib.console import CommandError, say
from scripts.lib.download import locked
from scripts.lib.machine import serving_device, threads_per_worker
from scripts.lib.model_folder import ModelFolder, json_bytes, write_atomically
from scripts.lib.packages import optional_packages
from scripts.lib.training.dataset import MAX_PIXELS

if TYPE_CHECKING:
    import openvino

MAX_LOGIT_GAP = 1e-3
"""A float32 runtime's logits may differ from eager PyTorch's by at most this."""
FACTS = "facts.json"
CALIBRATION_PICTURES = 300
"""Pictures that quantisation looks at; more don't help (NNCF's own default)."""


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def convert(
    model: ModelFolder, runtime: str, precision: str, calibration: Sequence[Path] = (), digest: str = ""
) -> tuple[ModelCard, dict[str, bytes]]:
    """The card of an archive, and the files that its runtime needs beside the weights.

    Says nothing about accuracy: see :mod:`scripts.lib.precision`.

    Args:
        model: the model.
        runtime: ``torch`` or ``openvino``.
        precision: ``float32``, ``bfloat16`` or ``int8``.
        calibration: picture files for ``int8``.
        digest: their :func:`calibration_digest`; alone it names those with which it was quantised before.

    Raises:
        CommandError: the runtime can't compute in that precision, or the converted model isn't
            the same as PyTorch's.
    """
    card = replace(model.card, runtime=runtime, precision=precision, threads_per_worker=threads_per_worker())
    if runtime == "torch":
        if precision == "int8":
            raise CommandError("--precision int8 needs --runtime openvino; choose it, or another precision")
        return card, {}
    folder = _quantised(model, calibration, digest) if precision == "int8" else _converted(model)
    files = {name: (folder / name).read_bytes() for name in OPENVINO_FILES}
    return replace(card, converted_sha256=converted_sha256(folder / OPENVINO_MODEL)), files


@contextmanager
def loaded(model: ModelFolder, card: ModelCard, files: Mapping[str, bytes]) -> Iterator[Runtime]:
    """The runtime of a converted model, where workers on this machine compute."""
    with tempfile.TemporaryDirectory(prefix="densenet-runtime-") as temporary:
        for name, content in files.items():
            Path(temporary, name).write_bytes(content)
        yield load_runtime(card, Path(temporary), model.weights, serving_device())


def _cached(key: object, make: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder of the cache for ``key``, filled by ``make``; the facts, written last, say that it is whole.

    Commands that want the same one wait for each other.
    """
    digest = hashlib.sha256(repr((key, import_openvino().__version__)).encode()).hexdigest()[:16]
    folder = paths.CACHE / "converted" / digest
    if not (folder / FACTS).is_file():
        with locked(folder, "another command is converting the same model; waiting for it"):
            if not (folder / FACTS).is_file():  # the other command has done it
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / FACTS, json_bytes(make(folder)))
    return folder


def identity(card: ModelCard) -> tuple[object, ...]:
    """What a converted model depends on."""
    return (card.weights_sha256, asdict(card.architecture), card.crop, card.mean, card.std)


def _converted(model: ModelFolder) -> Path:
    """The folder with the model as OpenVINO's files, from the cache or converted now and checked against PyTorch.

    Raises:
        CommandError: the converted model's logits aren't PyTorch's.
    """
    card = model.card

    def make(folder: Path) -> dict[str, float]:
        import torch  # not where the cache has it: that takes seconds, at every start of a server

        from handler.network import load_network
        from scripts.lib.tracing import CPU, WithNormalisation, from_torch

        say(f"converting {card.name} to OpenVINO")
        network = WithNormalisation(load_network(card, model.weights, CPU), Preprocessing.of(card)).eval()
        pixels = np.random.default_rng(0).integers(0, 256, (2, card.crop, card.crop, 3), dtype=np.uint8)
        _save(from_torch(network, pixels), folder)
        with torch.inference_mode():
            wanted = network(torch.from_numpy(pixels)).numpy()  # (2, classes)
        served = replace(
            card, runtime="openvino", precision="float32", converted_sha256=converted_sha256(folder / OPENVINO_MODEL)
        )
        gap = float(np.abs(load_runtime(served, folder, model.weights, CPU).logits(pixels) - wanted).max())
        if not gap <= MAX_LOGIT_GAP:
            raise CommandError(
                f"the converted model's logits differ from PyTorch's by {gap:.2g}, more than {MAX_LOGIT_GAP}; "
                "build with --runtime torch"
            )
        say(f"converted: the largest difference of a logit from PyTorch's is {gap:.1g} (at most {MAX_LOGIT_GAP})")
        return {"largest_logit_gap": gap}

    return _cached(identity(card), make)


def _save(model: openvino.Model, folder: Path) -> None:
    model.set_friendly_name("densenet")  # names count on from one conversion to the next
    for number, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
    import_openvino().save_model(model, folder / OPENVINO_MODEL, compress_to_fp16=False)


def _selected(calibration: Sequence[Path]) -> list[bytes]:
    """The files of the pictures that quantisation looks at: a choice that depends on their names alone."""
    chosen = sorted(calibration, key=lambda p: hashlib.sha256(p.name.encode()).digest())[:CALIBRATION_PICTURES]
    return [path.read_bytes() for path in chosen]


def calibration_digest(calibration: Sequence[Path]) -> str:
    """SHA-256, in hex, over the pictures that quantisation looks at; "" of none."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in _selected(calibration)))
    return digest.hexdigest() if calibration else ""


def _quantised(model: ModelFolder, calibration: Sequence[Path], digest: str) -> Path:
    """The folder with the model in int8, from the cache or quantised now.

    Raises:
        CommandError: it isn't in the cache, and there are no calibration pictures.
    """

    def make(folder: Path) -> dict[str, int]:
        contents = _selected(calibration)
        if not contents:
            raise CommandError(
                "--precision int8 needs pictures to find the range of every layer's values; give a folder with some "
                f"hundred pictures like those that will be served with --calibration ({CALIBRATION_PICTURES} are used)"
            )
        nncf = _nncf()
        say(f"quantising {model.card.name} to int8 with {len(contents)} calibration pictures")
        preprocessing = Preprocessing.of(model.card)
        exact = import_openvino().Core().read_model(_converted(model) / OPENVINO_MODEL)
        dataset = nncf.Dataset([preprocessing.read(content, MAX_PIXELS)[None] for content in contents])
        _save(nncf.quantize(exact, dataset, subset_size=len(contents)), folder)
        return {"calibration_pictures": len(contents)}

    return _cached((identity(model.card), "int8", digest), make)


def _nncf() -> Any:
    """NNCF, installed where it is missing."""
    if importlib.util.find_spec("nncf") is None:
        sys.path.append(str(optional_packages(paths.ROOT / "requirements-int8.lock", "int8")))
    return importlib.import_module("nncf")
