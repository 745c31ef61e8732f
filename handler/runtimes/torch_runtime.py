"""The network in PyTorch, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from handler.card import ModelCard
from handler.network import check_hash, load_network
from handler.preprocessing import Preprocessing, normalise
from handler.runtimes import Runtime, usable_precision

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchRuntime(Runtime):
    """PyTorch, channels last; eager, or compiled where the model's settings ask for it.

    Args:
        card: of the archive.
        weights: the weights file.
        device: CPU or GPU.
        compiler: options of ``torch.compile`` (``backend``, ``mode`` …); None: not compiled.
    """

    name = "torch"

    def __init__(
        self, card: ModelCard, weights: Path, device: torch.device, compiler: Mapping[str, Any] | None = None
    ) -> None:
        self.precision = usable_precision(card, device)
        self.device = device
        torch.set_num_threads(card.threads_per_worker)
        self.dtype = _TYPES[self.precision]
        self.scale, self.shift = (t.to(device) for t in Preprocessing.of(card).scale_and_shift())
        network = load_network(card, weights, device).to(self.dtype)
        check_hash(weights, card)
        self.network: Any = network if compiler is None else torch.compile(network, **compiler)
        self._eager = network

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self._run(self.network, pixels)

    def logits_and_features(
        self, pixels: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        seen: list[torch.Tensor] = []
        hook = self._eager.features[-1].register_forward_hook(lambda *call: seen.append(call[-1].relu()))
        try:
            logits = self._run(self._eager, pixels)
        finally:
            hook.remove()
        return logits, seen[0].float().cpu().numpy()

    def _run(self, network: torch.nn.Module, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        batch = torch.from_numpy(np.require(pixels, requirements="W"))  # (N, crop, crop, 3)
        if self.device.type == "cuda":  # page-locked memory is copied while the processor goes on, bytes not floats
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        with torch.inference_mode():
            images = normalise(batch, self.scale, self.shift)  # (N, 3, crop, crop)
            logits: npt.NDArray[np.float32] = network(images.to(self.dtype)).float().cpu().numpy()
            return logits
