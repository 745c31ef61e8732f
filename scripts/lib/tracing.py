"""A network of PyTorch as a model of OpenVINO."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from handler.preprocessing import Preprocessing
from handler.runtimes.openvino_runtime import import_openvino

if TYPE_CHECKING:
    import openvino

CPU = torch.device("cpu")


class WithNormalisation(torch.nn.Module):
    """(N, crop, crop, 3) uint8 → (N, classes) logits: what a converted model computes."""

    def __init__(self, network: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        scale, shift = preprocessing.scale_and_shift()
        self.scale, self.shift = torch.nn.Buffer(scale), torch.nn.Buffer(shift)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of pictures."""
        # not normalise(), whose in-place steps would be traced into another graph
        images = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift  # (N, 3, crop, crop)
        return self.network(images)  # type: ignore[no-any-return]  # (N, classes)


def from_torch(network: torch.nn.Module, pixels: np.ndarray) -> openvino.Model:
    """``network`` as an OpenVINO model that takes batches of any size, of pictures like ``pixels`` (N, …)."""
    with warnings.catch_warnings():
        # torch calls its tracer deprecated, and OpenVINO uses it; the result is checked against eager PyTorch
        warnings.simplefilter("ignore")
        model = import_openvino().convert_model(network, example_input=torch.from_numpy(pixels))
    model.reshape([-1, *pixels.shape[1:]])
    return model
