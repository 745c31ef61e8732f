"""Figures of a classifier on labelled pictures: accuracy and calibration, from logits."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from handler.card import ModelCard
from handler.errors import RequestError
from handler.network import load_network
from handler.preprocessing import Preprocessing
from handler.topk import Prediction
from scripts.client import DenseNetClient
from scripts.lib.console import CommandError, Progress, warn
from scripts.lib.model_folder import ModelFolder
from scripts.lib.training.dataset import MAX_PIXELS, Picture

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
    gap = torch.zeros(CALIBRATION_BINS).index_add(0, _bin_of(confidence), confidence - right)
    return float(gap.abs().sum() / len(targets))


def _bin_of(confidence: torch.Tensor) -> torch.Tensor:
    return (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al., 2017), 0.25 to 4.

    The bounds keep a few pictures that are all right from pushing every probability to 1.

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
    return float(log_t.detach().exp().nan_to_num(1.0).clamp(0.25, 4.0))


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson, "Probable Inference", 1927), 0 to 1.

    Args:
        hits: how many of ``total``.
        total: at least 1.
    """
    z = 1.959964
    share = hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def calibration_bins(probabilities: torch.Tensor, targets: torch.Tensor) -> list[dict[str, float]]:
    """Confidence and accuracy in each of the 15 bins that hold pictures, as a reliability diagram shows them.

    Args:
        probabilities: (N, C), rows sum to 1.
        targets: (N,) class indices.

    Returns:
        For each bin that isn't empty ``from`` and ``to`` (of the top probability), ``pictures``,
        mean ``confidence`` and ``accuracy``.
    """
    confidence, predicted = probabilities.max(dim=1)  # (N,), (N,)
    right = (predicted == targets).double()  # (N,)
    bins = _bin_of(confidence)  # (N,)
    found = []
    for index in range(CALIBRATION_BINS):
        mask = bins == index
        if mask.any():
            found.append(
                {
                    "from": round(index / CALIBRATION_BINS, 4),
                    "to": round((index + 1) / CALIBRATION_BINS, 4),
                    "pictures": int(mask.sum()),
                    "confidence": round(float(confidence[mask].double().mean()), 4),
                    "accuracy": round(float(right[mask].mean()), 4),
                }
            )
    return found


def figures(logits: torch.Tensor, targets: torch.Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Top-1 (with its 95 % interval) and top-5 accuracy, ECE, and accuracy per class, each 0 to 1.

    Args:
        logits: (N, C), already divided by the temperature.
        targets: (N,) class indices.
        labels: the C labels.
    """
    probabilities = logits.softmax(dim=1)  # (N, C)
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hits = top == targets[:, None]  # (N, 5)
    per_class = {}
    for index in sorted(set(targets.tolist())):
        of_class = targets == index
        per_class[labels[index]] = {
            "pictures": int(of_class.sum()),
            "top1": round(float(hits[of_class, 0].float().mean()), 4),
        }
    low, high = wilson_interval(int(hits[:, 0].sum()), len(targets))
    return {
        "pictures": len(targets),
        "top1": round(float(hits[:, 0].float().mean()), 4),
        "top1_95": [round(low, 4), round(high, 4)],
        "top5": round(float(hits.any(dim=1).float().mean()), 4),
        "ece": round(expected_calibration_error(probabilities, targets), 4),
        "per_class": per_class,
    }


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on labelled pictures.

    ``pictures``: the N that got an answer. ``logits``: (N, C), already divided by the temperature.
    ``targets``: (N,) class indices. ``failed``: how many pictures got none (they count for nothing).
    """

    card: ModelCard
    labels: Sequence[str]
    pictures: Sequence[Picture]
    logits: torch.Tensor
    targets: torch.Tensor
    failed: int = 0

    def total(self) -> dict[str, Any]:
        """:func:`figures` of all pictures."""
        return figures(self.logits, self.targets, self.labels)

    def sources(self) -> dict[str, dict[str, Any]]:
        """:func:`figures` of the pictures of each data folder, without those per class."""
        found = {}
        for source in sorted({p.source for p in self.pictures}):
            mask = torch.tensor([p.source == source for p in self.pictures])  # (N,)
            part = figures(self.logits[mask], self.targets[mask], self.labels)
            found[source] = {key: value for key, value in part.items() if key != "per_class"}
        return found

    def confusion(self) -> list[dict[str, Any]]:
        """The cells of the confusion matrix that aren't empty: ``label``, ``predicted``, ``pictures``, most first."""
        counts = Counter(zip(self.targets.tolist(), self.logits.argmax(dim=1).tolist()))
        return [
            {"label": self.labels[label], "predicted": self.labels[predicted], "pictures": pictures}
            for (label, predicted), pictures in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]

    def predictions(self) -> list[dict[str, Any]]:
        """Each picture's ``path``, ``label``, ``predicted`` label and its ``probability``."""
        best = self.logits.softmax(dim=1).max(dim=1)
        return [
            {
                "path": str(picture.path),
                "label": picture.label,
                "predicted": self.labels[index],
                "probability": round(probability, 6),
            }
            for picture, index, probability in zip(self.pictures, best.indices.tolist(), best.values.tolist())
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a JSON file."""
        return {
            "model": self.card.name,
            "weights_sha256": self.card.weights_sha256,
            "total": self.total(),
            "sources": self.sources(),
            "calibration": calibration_bins(self.logits.softmax(dim=1), self.targets),
            "confusion": self.confusion(),
            "failed": self.failed,
            "predictions": self.predictions(),
        }


def evaluate(model: ModelFolder, pictures: Sequence[Picture], url: str | None = None) -> Evaluation:
    """The answers of ``model`` on labelled pictures, computed here or by a running server.

    Args:
        model: the model.
        pictures: labelled with the model's labels.
        url: inference address of a server that serves this very model; None to run it here.

    Raises:
        CommandError: a label is unknown to the model, or every picture failed.
    """
    targets = class_indices(model, pictures)
    rows = _through_server(model, pictures, url) if url else _in_process(model, pictures)
    kept = [(picture, row, target) for picture, row, target in zip(pictures, rows, targets) if row is not None]
    if not kept:
        raise CommandError("none of the pictures got an answer; check them with scripts/predict.py")
    return Evaluation(
        card=model.card,
        labels=model.labels,
        pictures=[picture for picture, _, _ in kept],
        logits=torch.stack([row for _, row, _ in kept]),
        targets=torch.tensor([target for _, _, target in kept]),
        failed=len(pictures) - len(kept),
    )


def class_indices(model: ModelFolder, pictures: Sequence[Picture], source: str = "") -> list[int]:
    """The class of each picture by the model's labels; of a label that repeats, the first.

    Args:
        model: the model.
        pictures: labelled with its labels.
        source: where the pictures come from, as it stands in a message: ``" of --pictures"``.

    Raises:
        CommandError: the model doesn't know a label.
    """
    index = {label: i for i, label in reversed(list(enumerate(model.labels)))}
    unknown = sorted({p.label for p in pictures} - set(index))
    if unknown:
        raise CommandError(
            f"the model {model.card.name} doesn't know the label {unknown[0]!r}{source}; "
            "map the folders to its labels with --labels"
        )
    return [index[picture.label] for picture in pictures]


def _in_process(model: ModelFolder, pictures: Sequence[Picture]) -> list[torch.Tensor | None]:
    """Calibrated logits (C,) of each picture, None where it can't be decoded."""
    network = load_network(model.card, model.weights, torch.device("cpu"))
    preprocessing = Preprocessing.of(model.card)
    progress = Progress("evaluating", len(pictures))
    rows: list[torch.Tensor | None] = []
    for picture in progress.over(pictures):
        try:
            array = preprocessing.read(picture.path.read_bytes(), MAX_PIXELS)  # (crop, crop, 3)
        except (OSError, RequestError) as error:
            warn(f"left out {picture.path}: {error}")
            rows.append(None)
            continue
        with torch.inference_mode():
            rows.append(network(preprocessing.to_tensor(array[None]))[0] / model.card.temperature)  # (C,)
    return rows


def _through_server(model: ModelFolder, pictures: Sequence[Picture], url: str) -> list[torch.Tensor | None]:
    """Log-probabilities (C,) of each picture as the server answers, None where it doesn't."""
    progress = Progress("evaluating", len(pictures))
    rows: list[torch.Tensor | None] = []
    classes = model.card.num_classes
    with DenseNetClient(url, os.environ.get("DENSENET_TOKEN")) as client:
        for result in client.predict_many((p.path for p in pictures), classes, progress=progress.advance):
            if result.answer is None:
                warn(f"left out {result.picture}: {result.error}")
                rows.append(None)
                continue
            if any(model.labels[prediction.index] != prediction.label for prediction in result.answer.top):
                raise CommandError(
                    f"the server at {url} serves other labels than {model.card.name}; name its model with --weights"
                )
            rows.append(log_probabilities(result.answer.top))
    return rows


def log_probabilities(top: Sequence[Prediction]) -> torch.Tensor:
    """Log-probabilities (C,) of an answer that holds all C classes, best first, each probability rounded to 6 digits.

    Equal ones keep the answer's order, and those that were rounded to 0 share what is missing to a sum of 1.
    """
    given = [prediction.probability for prediction in top]
    lost = (1 - sum(given)) / max(1, given.count(0))
    row = torch.empty(len(top))
    above = math.inf
    for prediction in top:
        probability = prediction.probability or min(max(lost, 1e-9), 5e-7)
        above = min(math.log(probability), above - 1e-5)  # as little as float32 tells apart
        row[prediction.index] = above
    return row
