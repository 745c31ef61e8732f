"""A model's runtime and precision, settled when its archive is built: converted, measured, refused if worse.

model folder + what was asked for + labelled pictures  →  card with runtime and precision, files for the archive
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler.card import ModelCard
from handler.network import load_network
from handler.preprocessing import Preprocessing
from handler.runtimes import OPENVINO_MODEL, Runtime, has_bfloat16, load_runtime
from scripts.lib import paths
from scripts.lib.console import CommandError, Progress, say
from scripts.lib.model_folder import ModelFolder, json_bytes, write_atomically
from scripts.lib.training.dataset import MAX_PIXELS, Picture

CPU = torch.device("cpu")
MAX_LOGIT_GAP = 1e-3
"""A float32 runtime's logits may differ from eager PyTorch's by at most this."""
MAX_ACCURACY_LOSS = 0.003
"""Top-1 accuracy that a reduced precision may lose on labelled pictures."""
MIN_AGREEMENT = 0.99
"""Share of pictures for which a reduced precision must give the same label."""
MIN_PICTURES = 1000
"""Labelled pictures below which the accuracy of a reduced precision isn't known well enough."""
BATCH = 16


@dataclass(frozen=True)
class Verification:
    """A reduced precision beside float32, on the same labelled pictures. Accuracies and agreement are 0 to 1."""

    runtime: str
    precision: str
    pictures: int
    top1: float
    top1_float32: float
    agreement: float

    def shortcomings(self) -> list[str]:
        """What it lacks; nothing if it may be served."""
        lacks = []
        if self.pictures < MIN_PICTURES:
            lacks.append(f"it was measured on {self.pictures} pictures, at least {MIN_PICTURES} are needed")
        if self.top1 < self.top1_float32 - MAX_ACCURACY_LOSS:
            lacks.append(f"top-1 falls from {self.top1_float32:.4f} to {self.top1:.4f}, by more than 0.3 points")
        if self.agreement < MIN_AGREEMENT:
            lacks.append(f"it agrees with float32 on {100 * self.agreement:.2f} % of the pictures, less than 99 %")
        return lacks


def settle(
    model: ModelFolder, runtime: str = "auto", precision: str = "auto", pictures: Sequence[Picture] = ()
) -> tuple[ModelCard, dict[str, bytes]]:
    """Runtime and precision of an archive.

    Args:
        model: the model.
        runtime: ``torch``, ``openvino``, or ``auto``: OpenVINO where it is installed and no GPU serves.
        precision: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the processor computes in it
            and it has been shown to keep the accuracy, else float32.
        pictures: labelled pictures on which a reduced precision is measured. Without them what the
            model's card says of an earlier measurement counts.

    Returns:
        The card with both settled, and the files that the archive needs beside the weights.

    Raises:
        CommandError: what was asked for isn't there, or costs too much accuracy.
    """
    chosen = (
        runtime if runtime != "auto" else ("openvino" if _openvino() and not torch.cuda.is_available() else "torch")
    )
    if chosen == "openvino" and not _openvino():
        raise CommandError("OpenVINO isn't installed; install it with pip, or choose --runtime torch")
    card = replace(model.card, runtime=chosen, precision="float32")
    files = _converted(model) if chosen == "openvino" else {}
    if precision == "float32" or (precision == "auto" and not has_bfloat16()):
        return card, files
    reduced = replace(card, precision="bfloat16")
    verification = _verify(model, reduced, pictures) if pictures else _recorded(reduced)
    if verification is None:
        if precision == "auto":
            return card, files
        raise CommandError(
            f"nothing says what {precision} costs {card.name} in accuracy; "
            f"give at least {MIN_PICTURES} labelled pictures with --pictures, or choose --precision float32"
        )
    lacks = verification.shortcomings()
    if not lacks:
        return replace(reduced, accuracy={**card.accuracy, "precision": asdict(verification)}), files
    if precision != "auto":
        raise CommandError(
            f"{precision} isn't good enough for {card.name}: {'; '.join(lacks)}; choose --precision float32"
        )
    say(f"serving in float32: {'; '.join(lacks)}")
    return card, files


def convert(model: ModelFolder, runtime: str, precision: str) -> tuple[ModelCard, dict[str, bytes]]:
    """As :func:`settle`, without a measurement of accuracy: for weights that have none, as a benchmark's.

    Args:
        model: the model.
        runtime: ``torch`` or ``openvino``.
        precision: ``float32`` or ``bfloat16``.
    """
    files = _converted(model) if runtime == "openvino" else {}
    return replace(model.card, runtime=runtime, precision=precision), files


def _openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


class _WithNormalisation(torch.nn.Module):
    """(N, crop, crop, 3) uint8 → (N, classes) logits: what a converted model computes."""

    def __init__(self, network: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        scale, shift = preprocessing.scale_and_shift()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift  # (N, 3, crop, crop)
        return self.network(images)  # type: ignore[no-any-return]  # (N, classes)


def _converted(model: ModelFolder) -> dict[str, bytes]:
    """The model as OpenVINO's two files, from the cache or converted now and checked against PyTorch.

    Raises:
        CommandError: the converted model's logits aren't PyTorch's.
    """
    import openvino

    card = replace(model.card, runtime="openvino", precision="float32")
    shape = (card.weights_sha256, asdict(card.architecture), card.crop, card.mean, card.std, openvino.__version__)
    folder = paths.CACHE / "converted" / hashlib.sha256(repr(shape).encode()).hexdigest()[:16]
    files = {name: folder / name for name in (OPENVINO_MODEL, OPENVINO_MODEL.replace(".xml", ".bin"))}
    if not (folder / "checked.json").is_file():
        say(f"converting {card.name} to OpenVINO {openvino.__version__}")
        network = _WithNormalisation(load_network(card, model.weights, CPU), Preprocessing.of(card)).eval()
        pixels = np.random.default_rng(0).integers(0, 256, (2, card.crop, card.crop, 3), dtype=np.uint8)
        converted = openvino.convert_model(network, example_input=torch.from_numpy(pixels))
        converted.reshape([-1, card.crop, card.crop, 3])
        folder.mkdir(parents=True, exist_ok=True)
        openvino.save_model(converted, folder / OPENVINO_MODEL, compress_to_fp16=False)
        with torch.inference_mode():
            wanted = network(torch.from_numpy(pixels)).numpy()  # (2, classes)
        gap = float(np.abs(load_runtime(card, folder, model.weights, CPU).logits(pixels) - wanted).max())
        if not gap <= MAX_LOGIT_GAP:
            raise CommandError(
                f"the converted model's logits differ from PyTorch's by {gap:.2g}, more than {MAX_LOGIT_GAP}; "
                "build with --runtime torch"
            )
        write_atomically(folder / "checked.json", json_bytes({"largest_logit_gap": gap}))
    return {name: file.read_bytes() for name, file in files.items()}


def _verify(model: ModelFolder, reduced: ModelCard, pictures: Sequence[Picture]) -> Verification:
    """Both precisions on ``pictures``, whose labels are the model's."""
    index = {label: i for i, label in reversed(list(enumerate(model.labels)))}
    unknown = sorted({p.label for p in pictures} - set(index))
    if unknown:
        raise CommandError(
            f"the model {model.card.name} doesn't know the label {unknown[0]!r} of --pictures; "
            "map the folders to its labels with --labels"
        )
    targets = np.array([index[p.label] for p in pictures])  # (P,)
    folder = paths.CACHE / "converted"
    exact = load_runtime(replace(model.card, runtime="torch", precision="float32"), folder, model.weights, CPU)
    files = _converted(model) if reduced.runtime == "openvino" else {}
    with tempfile.TemporaryDirectory(prefix="densenet-verify-") as temporary:
        for name, content in files.items():
            Path(temporary, name).write_bytes(content)
        candidate = load_runtime(reduced, Path(temporary), model.weights, CPU)
        answers = _labels(exact, candidate, Preprocessing.of(model.card), pictures)  # (2, P)
    return Verification(
        runtime=reduced.runtime,
        precision=reduced.precision,
        pictures=len(pictures),
        top1=round(float((answers[1] == targets).mean()), 4),
        top1_float32=round(float((answers[0] == targets).mean()), 4),
        agreement=round(float((answers[0] == answers[1]).mean()), 4),
    )


def _labels(exact: Runtime, reduced: Runtime, preprocessing: Preprocessing, pictures: Sequence[Picture]) -> np.ndarray:
    """The class that each of two runtimes gives each picture, (2, P)."""
    progress = Progress(f"measuring {reduced.name} {reduced.precision}", len(pictures))
    rows = []
    for start in range(0, len(pictures), BATCH):
        part = pictures[start : start + BATCH]
        pixels = np.stack([preprocessing.read(p.path.read_bytes(), MAX_PIXELS) for p in part])
        rows.append([runtime.logits(pixels).argmax(axis=1) for runtime in (exact, reduced)])
        progress.advance(len(part))
    return np.concatenate(rows, axis=1)


def _recorded(reduced: ModelCard) -> Verification | None:
    """What the card says of an earlier measurement of the same runtime and precision."""
    record: Any = reduced.accuracy.get("precision")
    if not isinstance(record, dict):
        return None
    found = Verification(**record)
    return found if (found.runtime, found.precision) == (reduced.runtime, reduced.precision) else None
