"""Runtime and precision of an archive, settled when it is built: the fastest that keeps the accuracy.

model folder + what was asked for + labelled pictures  →  card with runtime and precision, files for the archive
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from handler.card import ModelCard
from handler.images import decode, decode_reduced
from handler.preprocessing import Preprocessing
from handler.runtimes import Runtime, has_bfloat16, load_runtime
from scripts.lib import paths
from scripts.lib.console import CommandError, Progress, say
from scripts.lib.conversion import calibration_digest, convert, has_openvino, identity, loaded
from scripts.lib.machine import serves_on_gpu, serving_device
from scripts.lib.model_folder import CARD, ModelFolder, json_bytes, read_json, write_atomically
from scripts.lib.training.dataset import MAX_PIXELS, Picture, labelled, picture_files

MAX_ACCURACY_LOSS = 0.003
"""Top-1 accuracy that reduced decoding and precision may lose together on labelled pictures."""
MIN_AGREEMENT = 0.99
"""Share of pictures for which they must give the label of the exact computation."""
MIN_PICTURES = 1000
"""Labelled pictures below which the accuracy of a reduced precision isn't known well enough."""
SERVED = "served"
"""Key of the measurement in a card's ``accuracy``."""
BATCH = 16


@dataclass(frozen=True)
class Wanted:
    """What the command line says about how the network computes.

    ``runtime``: ``torch``, ``openvino``, or ``auto``: OpenVINO where it is installed and no GPU serves.
    ``precision``: ``float32``, ``bfloat16``, ``int8``, or ``auto``: the fastest of them that
    has been shown to keep the accuracy. ``pictures``: labelled
    pictures on which that is measured; without them an earlier measurement counts, on this machine or
    on the model's card. ``calibration``: picture files for int8, which isn't tried without them.
    """

    runtime: str = "auto"
    precision: str = "auto"
    pictures: Sequence[Picture] = field(default=())
    calibration: Sequence[Path] = field(default=())

    @classmethod
    def of(cls, args: argparse.Namespace) -> Wanted:
        """What ``add_runtime_options`` put on a command line."""
        calibration = picture_files(args.calibration) if args.calibration else []
        if args.calibration and not calibration:
            raise CommandError(f"--calibration {args.calibration} holds no pictures; give a folder with some hundred")
        return cls(args.runtime, args.precision, labelled(args.pictures, args.labels), calibration)

    def settled_runtime(self) -> str:
        """``torch`` or ``openvino``.

        Raises:
            CommandError: OpenVINO is asked for and isn't installed.
        """
        if self.runtime == "auto":
            return "openvino" if has_openvino() and not serves_on_gpu() else "torch"
        if self.runtime == "openvino" and not has_openvino():
            raise CommandError("OpenVINO isn't installed; install it with pip, or choose --runtime torch")
        return self.runtime


@dataclass(frozen=True)
class Verification:
    """What a model answers as it is served, beside eager PyTorch in float32 on exactly decoded pictures.

    Top-1 accuracies and agreement are 0 to 1; ``reduced`` counts the pictures that were decoded at a reduced size,
    ``calibration`` is the digest of those with which int8 was quantised.
    """

    runtime: str
    precision: str
    pictures: int
    reduced: int
    top1: float
    top1_exact: float
    agreement: float
    calibration: str = ""

    def shortcomings(self) -> list[str]:
        """What it lacks; nothing if it may be served."""
        lacks = []
        if self.precision != "float32" and self.pictures < MIN_PICTURES:
            lacks.append(f"it was measured on {self.pictures} pictures, at least {MIN_PICTURES} are needed")
        if self.top1 < self.top1_exact - MAX_ACCURACY_LOSS:
            lacks.append(f"top-1 falls from {self.top1_exact:.4f} to {self.top1:.4f}, by more than 0.3 points")
        if self.agreement < MIN_AGREEMENT:
            lacks.append(f"it agrees with PyTorch in float32 on {100 * self.agreement:.2f} % of the pictures, not 99 %")
        return lacks

    def line(self) -> str:
        """The figures in a line."""
        return (
            f"{self.runtime} {self.precision}: top-1 {self.top1:.4f}, exact {self.top1_exact:.4f}, "
            f"agreement {100 * self.agreement:.2f} %, "
            f"{self.pictures} pictures, {self.reduced} decoded at a reduced size"
        )


def settle(model: ModelFolder, wanted: Wanted) -> tuple[ModelCard, dict[str, bytes]]:
    """Runtime and precision of an archive.

    Returns:
        The card with both settled and what was measured, and the files that the archive needs beside the weights.

    Raises:
        CommandError: what was asked for isn't there, or costs too much accuracy.
    """
    runtime = wanted.settled_runtime()
    exact = Exact(model, wanted.pictures) if wanted.pictures else None
    record = None if exact else _recorded(model, runtime)
    automatic = wanted.precision == "auto"
    for precision in _candidates(runtime, wanted, record) if automatic else [wanted.precision]:
        known = record if record and record.precision == precision else None
        digest = known.calibration if known else ""
        if precision == "int8" and wanted.calibration:
            digest = calibration_digest(wanted.calibration)
        card, files = convert(model, runtime, precision, wanted.calibration, digest)
        verification = exact.beside(card, files, digest) if exact else known
        if verification is None and precision == "float32":
            return card, files
        if verification is None:
            lacks = [f"its accuracy isn't known; give at least {MIN_PICTURES} labelled pictures with --pictures"]
        else:
            lacks = verification.shortcomings()
        if exact and verification:
            say(verification.line())
        if verification and not lacks:
            if exact:
                write_atomically(_record_path(model, runtime), json_bytes(asdict(verification)))
            return replace(card, accuracy={**card.accuracy, SERVED: asdict(verification)}), files
        if not automatic or precision == "float32":
            remedy = "choose --precision float32" if precision != "float32" else "check --pictures and --labels"
            raise CommandError(f"{precision} isn't good enough for {card.name}: {'; '.join(lacks)}; {remedy}")
        say(f"not {precision}: {'; '.join(lacks)}")
    raise AssertionError("float32 is the last candidate, and is taken or refused")


def record(model: ModelFolder, pictures: Sequence[Picture]) -> ModelFolder:
    """Measure what serving the model as fast as this machine can costs in accuracy, and write it into its card.

    Whether a picture was trained on doesn't matter: what counts is that the answers stay the same.
    """
    served = settle(model, Wanted(pictures=pictures))[0].accuracy[SERVED]
    card = replace(model.card, accuracy={**model.card.accuracy, SERVED: served})
    write_atomically(model.path / CARD, json_bytes(card.to_dict()))
    return replace(model, card=card)


def _candidates(runtime: str, wanted: Wanted, record: Verification | None) -> list[str]:
    """The precisions that ``auto`` tries, fastest first: what may be measured now, or was before."""
    names = {"float32"}
    if wanted.pictures:
        names |= {"bfloat16", "int8"} if wanted.calibration and runtime == "openvino" else {"bfloat16"}
    elif record:
        names.add(record.precision)  # also where it can't be computed: a worker takes float32 there
    if wanted.pictures and not has_bfloat16(serving_device()):
        names.discard("bfloat16")  # nothing to measure
    return [name for name in ("int8", "bfloat16", "float32") if name in names]


def _record_path(model: ModelFolder, runtime: str) -> Path:
    digest = hashlib.sha256(repr(identity(model.card)).encode()).hexdigest()[:16]
    return paths.CACHE / "verified" / f"{digest}-{runtime}.json"


def _recorded(model: ModelFolder, runtime: str) -> Verification | None:
    """What was measured before: on this machine, or by whoever wrote the model's card."""
    path = _record_path(model, runtime)
    record = read_json(path) if path.is_file() else model.card.accuracy.get(SERVED)
    found = Verification(**record) if isinstance(record, dict) else None
    return found if found and found.runtime == runtime else None


class Exact:
    """The labels that eager PyTorch gives in float32 to exactly decoded pictures, computed once for all candidates.

    Args:
        model: the model.
        pictures: labelled with its labels.

    Raises:
        CommandError: the model doesn't know a label.
    """

    def __init__(self, model: ModelFolder, pictures: Sequence[Picture]) -> None:
        from scripts.lib.evaluation import class_indices
        from scripts.lib.tracing import CPU

        self.targets = np.array(class_indices(model, pictures, " of --pictures"))  # (P,)
        self.model, self.pictures = model, pictures
        self.preprocessing = Preprocessing.of(model.card)
        plain = replace(model.card, runtime="torch", precision="float32")
        runtime = load_runtime(plain, paths.CACHE, model.weights, CPU)
        self.labels = self._labels(runtime, "measuring PyTorch in float32", self._exactly)  # (P,)

    def beside(self, card: ModelCard, files: Mapping[str, bytes], calibration: str = "") -> Verification:
        """What the model answers as ``card`` says that it is served; ``calibration``: the digest of its pictures."""
        self.reduced = 0
        with loaded(self.model, card, files) as runtime:
            labels = self._labels(runtime, f"measuring {card.runtime} in {card.precision}", self._served)  # (P,)
        return Verification(
            runtime=card.runtime,
            precision=card.precision,
            pictures=len(labels),
            reduced=self.reduced,
            top1=round(float((labels == self.targets).mean()), 4),
            top1_exact=round(float((self.labels == self.targets).mean()), 4),
            agreement=round(float((labels == self.labels).mean()), 4),
            calibration=calibration,
        )

    def _exactly(self, data: bytes) -> np.ndarray:
        return self.preprocessing.to_array(decode(data, MAX_PIXELS))

    def _served(self, data: bytes) -> np.ndarray:
        image, size = decode_reduced(data, MAX_PIXELS, self.preprocessing.enough)
        self.reduced += image.size != size
        return self.preprocessing.to_array(image, size)

    def _labels(self, runtime: Runtime, what: str, read: Callable[[bytes], np.ndarray]) -> np.ndarray:
        progress = Progress(what, len(self.pictures))
        rows = []
        for start in range(0, len(self.pictures), BATCH):
            part = self.pictures[start : start + BATCH]
            pixels = np.stack([read(p.path.read_bytes()) for p in part])  # (n, crop, crop, 3)
            rows.append(runtime.logits(pixels).argmax(axis=1))
            progress.advance(len(part))
        return np.concatenate(rows)
