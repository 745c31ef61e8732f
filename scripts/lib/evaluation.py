"""Figures of a classifier on labelled pictures: accuracy and calibration, from logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

CALIBRATION_BINS = 15


def expected_calibration_error(probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """ECE over 15 equal bins of the top probability (Naeini et al., "Obtaining Well Calibrated Probabilities", 2015).

    Args:
        probabilities: (N, C), rows sum to 1.
        targets: (N,) class indices.

    Returns:
        Mean absolute gap between confidence and accuracy, weighted by bin size, 0 to 1.
    """
    confidence, predicted = probabilities.max(dim=1)  # (N,), (N,)
    right = (predicted == targets).float()  # (N,)
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)  # (N,)
    gap = torch.zeros(CALIBRATION_BINS).index_add(0, bins, confidence - right)
    return float(gap.abs().sum() / len(targets))


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al., 2017).

    Args:
        logits: (N, C).
        targets: (N,) class indices.
    """
    log_t = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.exp(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_t.exp())


def figures(logits: torch.Tensor, targets: torch.Tensor, labels: list[str]) -> dict[str, Any]:
    """Top-1 and top-5 accuracy, ECE, and accuracy per class, each 0 to 1.

    Args:
        logits: (N, C), already divided by the temperature.
        targets: (N,) class indices.
        labels: the C labels.
    """
    probabilities = logits.softmax(dim=1)  # (N, C)
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hits = top == targets[:, None]  # (N, 5)
    per_class = {}
    for index in targets.unique().tolist():
        of_class = targets == index
        per_class[labels[index]] = {
            "pictures": int(of_class.sum()),
            "top1": round(float(hits[of_class, 0].float().mean()), 4),
        }
    return {
        "pictures": len(targets),
        "top1": round(float(hits[:, 0].float().mean()), 4),
        "top5": round(float(hits.any(dim=1).float().mean()), 4),
        "ece": round(expected_calibration_error(probabilities, targets), 4),
        "per_class": per_class,
    }
