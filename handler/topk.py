"""Logits → probabilities → the k best classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """One class that the network holds for likely; ``probability`` 0 to 1. The index is the identity."""

    label: str
    index: int
    probability: float

    def to_dict(self) -> dict[str, object]:
        """The prediction as plain JSON types."""
        return {"label": self.label, "index": self.index, "probability": self.probability}


def top_predictions(
    logits: npt.NDArray[np.floating[Any]], labels: Sequence[str], k: int, temperature: float = 1.0
) -> list[list[Prediction]]:
    """The ``k`` most probable classes of each picture, best first; of equal ones the lower index first.

    Args:
        logits: (N, C), any floating type.
        labels: the C labels; they may repeat.
        k: 1 to C.
        temperature: divides the logits before the softmax.
    """
    if not len(logits):
        return []
    scaled = logits.astype(np.float64) / temperature  # (N, C)
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))  # (N, C)
    # argmax is the first step of the sort, and all that most requests want
    order = scaled.argmax(axis=1)[:, None] if k == 1 else np.argsort(-scaled, axis=1, kind="stable")[:, :k]  # (N, k)
    best = np.take_along_axis(powers, order, axis=1) / powers.sum(axis=1, keepdims=True)  # (N, k)
    return [
        [Prediction(labels[i], i, round(p, 6)) for i, p in zip(indices, probabilities)]
        for indices, probabilities in zip(order.tolist(), best.tolist())
    ]
