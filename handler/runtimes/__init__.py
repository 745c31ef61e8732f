"""What computes logits: one small interface, an implementation a module.

card + model folder + device  →  Runtime  →  logits of uint8 pictures
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from handler.card import CardError, ModelCard, sha256_of

if TYPE_CHECKING:
    import torch  # serve.py does without it, where its archive is up to date

logger = logging.getLogger(__name__)

OPENVINO_MODEL = "openvino.xml"
OPENVINO_FILES = (OPENVINO_MODEL, "openvino.bin")
"""The converted model in an archive: its graph and its weights."""


class Runtime(ABC):
    """A network that is ready to compute. Normalisation is part of it.

    Attributes:
        name: as on the card, ``torch`` or ``openvino``.
        precision: what it really computes in: ``float32``, ``bfloat16`` or ``int8``.
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

    @abstractmethod
    def logits_and_features(
        self, pixels: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The same answers, and the last feature maps, for explanations.

        Returns:
            (N, classes) and (N, channels, h, w), at least 0: the last dense block behind its norm and
            ReLU, of which the last layer takes the mean.
        """


def load_runtime(
    card: ModelCard, folder: Path, weights: Path, device: torch.device, compiler: Mapping[str, Any] | None = None
) -> Runtime:
    """The runtime that ``card`` asks for, ready on ``device``.

    Args:
        card: of the archive: runtime and precision are settled there.
        folder: where the archive is unpacked.
        weights: the weights file.
        device: of this worker. A GPU always computes with torch.
        compiler: options of ``torch.compile``, for torch; None: eager.

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
    return TorchRuntime(card, weights, device, compiler)


def converted_sha256(model: Path) -> str:
    """SHA-256 over OpenVINO's files, in hex, given the first of them.

    Raises:
        CardError: one isn't there.
    """
    digest = hashlib.sha256()
    for name in OPENVINO_FILES:
        file = model.with_name(name)
        if not file.is_file():
            raise CardError(f"the archive has no {name}, which its card asks for; build it anew")
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes in bfloat16 (AMX, AVX-512, Arm, a GPU); emulated, it would be slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in ("amx_bf16", "avx512_bf16", "arm_bf16"))


def usable_precision(card: ModelCard, device: torch.device) -> str:
    """The card's precision, or float32 where it is bfloat16 and ``device`` doesn't compute in it."""
    if card.precision == "bfloat16" and not has_bfloat16(device):
        logger.warning("%s doesn't compute in bfloat16: computing in float32", device)
        return "float32"
    return card.precision
