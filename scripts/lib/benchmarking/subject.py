"""What all contenders serve: one model, and how ours and the bare loop compute it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from handler.card import ARCHITECTURES, ModelCard
from handler.network import build_network
from handler.runtimes import has_bfloat16, usable_precision
from scripts.lib.console import CommandError
from scripts.lib.conversion import convert, settle
from scripts.lib.model_folder import LABELS, ModelFolder, read_json, write_model_folder
from scripts.lib.paths import ROOT
from scripts.lib.training.dataset import Picture as Labelled

UNTRAINED_NOTE = "untrained weights: the times are those of a trained model, the answers mean nothing"


@dataclass(frozen=True)
class Subject:
    """The model and, for ours and the bare loop, the card with settled runtime and precision.

    ``converted``: what that runtime needs beside the weights, by file name. ``note``: what a
    reader of the report must know of the model; empty if nothing.
    """

    model: ModelFolder
    card: ModelCard
    converted: Mapping[str, bytes]
    note: str = ""

    @property
    def settings(self) -> str:
        """Runtime and precision as this processor runs them."""
        return f"{self.card.runtime} {usable_precision(self.card)}"


def trained(model: ModelFolder, runtime: str, precision: str, pictures: Sequence[Labelled]) -> Subject:
    """A trained model; the arguments are those of :func:`scripts.lib.conversion.settle`.

    Raises:
        CommandError: what was asked for isn't there, or costs too much accuracy.
    """
    return Subject(model, *settle(model, runtime, precision, pictures))


def untrained(arch: str, folder: Path, runtime: str, precision: str) -> Subject:
    """A freshly initialised network with the 1000 classes of ImageNet, always the same: for timing alone.

    Args:
        arch: one of the four names in ``ARCHITECTURES``.
        folder: where the model folder goes.
        runtime: ``torch``, ``openvino``, or ``auto``: OpenVINO where it is installed.
        precision: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the processor computes in it.
            Nothing is measured: there is no accuracy to lose.

    Raises:
        CommandError: OpenVINO is asked for and isn't installed.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if runtime == "openvino" and not installed:
        raise CommandError("OpenVINO isn't installed; install it with pip, or choose --runtime torch")
    if runtime == "auto":
        runtime = "openvino" if installed else "torch"
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16() else "float32"
    labels = list(read_json(ROOT / LABELS).values())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(ARCHITECTURES[arch], len(labels))
    card = ModelCard(
        name=f"{arch}-untrained", architecture=ARCHITECTURES[arch], num_classes=len(labels), dataset="none"
    )
    model = write_model_folder(folder, network.state_dict(), card, labels)
    return Subject(model, *convert(model, runtime, precision), UNTRAINED_NOTE)
