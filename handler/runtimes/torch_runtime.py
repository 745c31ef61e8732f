"""The network in PyTorch, on the CPU or a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from handler.card import ModelCard
from handler.network import check_hash, load_network
from handler.preprocessing import Preprocessing
from handler.runtimes import Runtime, usable_precision

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchRuntime(Runtime):
    """Eager PyTorch, channels last."""

    name = "torch"

    def __init__(self, card: ModelCard, weights: Path, device: torch.device) -> None:
        self.precision = usable_precision(card) if device.type == "cpu" else card.precision
        self.device, self.preprocessing = device, Preprocessing.of(card)
        torch.set_num_threads(card.threads_per_worker)
        self.dtype = _TYPES[self.precision]
        self.network = load_network(card, weights, device).to(self.dtype)
        check_hash(weights, card)

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            images = self.preprocessing.to_tensor(pixels).to(self.device, self.dtype, non_blocking=True)
            logits: npt.NDArray[np.float32] = self.network(images).float().cpu().numpy()
            return logits
