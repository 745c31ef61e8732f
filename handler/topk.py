"""Logits → probabilities → the k best classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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
    logits: torch.Tensor, labels: Sequence[str], k: int, temperature: float = 1.0
) -> list[list[Prediction]]:
    """The ``k`` most probable classes of each picture, best first; of equal ones the lower index first.

    Args:
        logits: (N, C), any floating type, any device.
        labels: the C labels; they may repeat.
        k: 1 to C.
        temperature: divides the logits before the softmax.
    """
    probabilities = (logits.float() / temperature).softmax(dim=1)  # (N, C)
    # not topk(), which leaves the order of equal values open
    values, indices = (t[:, :k] for t in probabilities.sort(dim=1, descending=True, stable=True))  # (N, k), (N, k)
    return [
        [Prediction(labels[i], i, round(p, 6)) for i, p in zip(row_indices, row_values)]
        for row_indices, row_values in zip(indices.tolist(), values.tolist())
    ]
