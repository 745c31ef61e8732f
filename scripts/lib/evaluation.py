"""Figures of a classifier on labelled pictures: accuracy and calibration, from logits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from handler.errors import RequestError
from handler.images import decode
from handler.network import load_network
from handler.preprocessing import Preprocessing
from scripts.lib.client import Client
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
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)  # (N,)
    gap = torch.zeros(CALIBRATION_BINS).index_add(0, bins, confidence - right)
    return float(gap.abs().sum() / len(targets))


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
    for index in sorted(set(targets.tolist())):
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


def figures_by_source(
    logits: torch.Tensor, targets: torch.Tensor, labels: list[str], sources: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """:func:`figures` of the pictures of each data folder, without those per class.

    Args:
        logits, targets, labels: as for :func:`figures`.
        sources: the N names of the pictures' data folders.
    """
    found = {}
    for source in sorted(set(sources)):
        mask = torch.tensor([name == source for name in sources])  # (N,)
        part = figures(logits[mask], targets[mask], labels)
        found[source] = {key: part[key] for key in ("pictures", "top1", "top5", "ece")}
    return found


def evaluate(model: ModelFolder, pictures: Sequence[Picture], url: str | None = None) -> dict[str, Any]:
    """Figures of ``model`` on labelled pictures, computed here or by a running server.

    Args:
        model: the model.
        pictures: labelled with the model's labels.
        url: inference address of a server that serves this very model; None to run it here.

    Returns:
        ``total`` and, for each data folder, ``sources`` as :func:`figures` gives them; every
        picture's ``predictions``; and how many pictures ``failed`` (and count for nothing).

    Raises:
        CommandError: a label is unknown to the model, or every picture failed.
    """
    index = {label: i for i, label in reversed(list(enumerate(model.labels)))}
    unknown = sorted({p.label for p in pictures} - set(index))
    if unknown:
        raise CommandError(
            f"the model {model.card.name} doesn't know the label {unknown[0]!r}; "
            "map the folders to its labels with --labels"
        )
    rows = _through_server(model, pictures, url) if url else _in_process(model, pictures)
    kept = [(picture, row) for picture, row in zip(pictures, rows) if row is not None]
    if not kept:
        raise CommandError("none of the pictures got an answer; check them with scripts/predict.py")
    logits = torch.stack([row for _, row in kept])  # (N, C)
    targets = torch.tensor([index[picture.label] for picture, _ in kept])  # (N,)
    best = logits.softmax(dim=1).max(dim=1)
    return {
        "model": model.card.name,
        "weights_sha256": model.card.weights_sha256,
        "total": figures(logits, targets, model.labels),
        "sources": figures_by_source(logits, targets, model.labels, [picture.source for picture, _ in kept]),
        "failed": len(pictures) - len(kept),
        "predictions": [
            {
                "path": str(picture.path),
                "label": picture.label,
                "predicted": model.labels[best_index],
                "probability": round(probability, 6),
            }
            for (picture, _), best_index, probability in zip(kept, best.indices.tolist(), best.values.tolist())
        ],
    }


def _in_process(model: ModelFolder, pictures: Sequence[Picture]) -> list[torch.Tensor | None]:
    """Calibrated logits (C,) of each picture, None where it can't be decoded."""
    network = load_network(model.card, model.weights, torch.device("cpu"))
    preprocessing = Preprocessing.of(model.card)
    progress = Progress("evaluating", len(pictures))
    rows: list[torch.Tensor | None] = []
    for picture in progress.over(pictures):
        try:
            array = preprocessing.to_array(decode(picture.path.read_bytes(), MAX_PIXELS))  # (crop, crop, 3)
        except (OSError, RequestError) as error:
            warn(f"left out {picture.path}: {error}")
            rows.append(None)
            continue
        with torch.inference_mode():
            rows.append(network(preprocessing.to_tensor(array[None]))[0] / model.card.temperature)  # (C,)
    return rows


def _through_server(model: ModelFolder, pictures: Sequence[Picture], url: str) -> list[torch.Tensor | None]:
    """Log-probabilities (C,) of each picture as the server answers, None where it doesn't."""
    client = Client(url, os.environ.get("DENSENET_TOKEN"))
    progress = Progress("evaluating", len(pictures))
    rows: list[torch.Tensor | None] = []
    classes = model.card.num_classes
    for result in progress.over(client.predict_files([p.path for p in pictures], classes, concurrency=4)):
        if result.answer is None:
            warn(f"left out {result.path}: {result.error}")
            rows.append(None)
            continue
        probabilities = torch.zeros(classes)
        for prediction in result.answer["top"]:
            if model.labels[prediction["index"]] != prediction["label"]:
                raise CommandError(
                    f"the server at {url} serves other labels than {model.card.name}; name its model with --weights"
                )
            probabilities[prediction["index"]] = prediction["probability"]
        rows.append(probabilities.clamp(min=1e-9).log())
    return rows
