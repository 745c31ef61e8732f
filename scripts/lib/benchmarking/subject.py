"""What all contenders serve: one model, and how ours and the bare loop compute it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from handler.card import ARCHITECTURES, ModelCard
from handler.network import build_network
from handler.runtimes import has_bfloat16, usable_precision
from scripts.lib.console import CommandError
from scripts.lib.conversion import convert
from scripts.lib.machine import serving_device
from scripts.lib.model_folder import LABELS, ModelFolder, read_json, write_model_folder
from scripts.lib.paths import ROOT
from scripts.lib.precision import Wanted, settle

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
        return f"{self.card.runtime} {usable_precision(self.card, serving_device())}"


def trained(model: ModelFolder, wanted: Wanted) -> Subject:
    """A trained model, computed as :func:`scripts.lib.precision.settle` settles it.

    Raises:
        CommandError: what was asked for isn't there, or costs too much accuracy.
    """
    return Subject(model, *settle(model, wanted))


def untrained(arch: str, folder: Path, wanted: Wanted) -> Subject:
    """A freshly initialised network: for timing alone. Nothing is measured: there is no accuracy to lose.

    Args:
        arch: one of the four names in ``ARCHITECTURES``.
        folder: where the model folder goes.
        wanted: ``auto``: OpenVINO where it is installed, bfloat16 where the processor computes in it.

    Raises:
        CommandError: labelled pictures are given, or OpenVINO is asked for and isn't installed.
    """
    if wanted.pictures or wanted.calibration:
        raise CommandError(
            "--pictures and --calibration are for a trained model; untrained weights have no accuracy to lose: "
            "leave them out, or give other --weights"
        )
    runtime, precision = wanted.settled_runtime(), wanted.precision
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(serving_device()) else "float32"
    model = untrained_model(arch, folder)
    return Subject(model, *convert(model, runtime, precision), UNTRAINED_NOTE)


def untrained_model(arch: str, folder: Path) -> ModelFolder:
    """A freshly initialised network with the 1000 classes of ImageNet, always the same, in ``folder``."""
    labels = list(read_json(ROOT / LABELS).values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(ARCHITECTURES[arch], len(labels))
    card = ModelCard(
        name=arch,
        architecture=ARCHITECTURES[arch],
        num_classes=len(labels),
        dataset="none: random weights, for timing only",
    )
    return write_model_folder(folder, network.state_dict(), card, labels)
