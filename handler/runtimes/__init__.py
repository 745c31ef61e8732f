"""What computes logits: one small interface, an implementation a module.

card + model folder + device  →  Runtime  →  logits of uint8 pictures
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from handler.card import CardError, ModelCard

logger = logging.getLogger(__name__)

OPENVINO_MODEL = "openvino.xml"
"""The converted model in an archive; its weights lie beside it (``openvino.bin``)."""


class Runtime(ABC):
    """A network that is ready to compute. Normalisation is part of it.

    Attributes:
        name: as on the card, ``torch`` or ``openvino``.
        precision: what it really computes in: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
    """

    name: str
    precision: str

    @abstractmethod
    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The answers to a batch of pictures.

        Args:
            pixels: (N, crop, crop, 3), 0 to 255, N at least 1.

        Returns:
            (N, classes).
        """


def load_runtime(card: ModelCard, folder: Path, weights: Path, device: torch.device) -> Runtime:
    """The runtime that ``card`` asks for, ready on ``device``.

    Args:
        card: of the archive: runtime and precision are settled there.
        folder: where the archive is unpacked.
        weights: the weights file.
        device: of this worker. A GPU always computes with torch.

    Raises:
        CardError: the weights don't fit the card, or what the runtime needs is missing.
    """
    if card.runtime == "openvino" and device.type == "cpu":
        from handler.runtimes.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(card, folder / OPENVINO_MODEL)
    from handler.runtimes.torch_runtime import TorchRuntime

    if card.precision == "int8":
        raise CardError(
            "precision int8 needs the runtime openvino on a CPU; build the archive with --precision float32"
        )
    return TorchRuntime(card, weights, device)


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16 (AMX, AVX-512 or Arm); emulated, it would be slower than float32."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in ("amx_bf16", "avx512_bf16", "arm_bf16"))


def usable_precision(card: ModelCard) -> str:
    """The card's precision, or float32 where it is bfloat16 and this processor doesn't compute in it."""
    if card.precision == "bfloat16" and not has_bfloat16():
        logger.warning("this processor doesn't compute in bfloat16: computing in float32")
        return "float32"
    return card.precision
