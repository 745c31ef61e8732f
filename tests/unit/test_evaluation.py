"""The figures of a classifier, against values computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handler.card import Architecture, ModelCard
from handler.topk import top_predictions
from scripts.lib.evaluation import (
    Evaluation,
    calibration_bins,
    expected_calibration_error,
    figures,
    fit_temperature,
    log_probabilities,
    wilson_interval,
)
from scripts.lib.training.dataset import Picture


def test_calibration_error_of_two_bins() -> None:
    # two pictures at 0.9, one right; two at 0.6, both right: gaps 0.4 and 0.4
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert expected_calibration_error(probabilities, torch.tensor([0, 1, 0, 0])) == pytest.approx(0.4)
    assert expected_calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0


def test_temperature_undoes_a_scaling() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator) * 2
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, targets) == pytest.approx(1, abs=0.1)
    assert fit_temperature(logits * 2, targets) == pytest.approx(2, abs=0.2)
    assert 0.25 <= fit_temperature(torch.eye(3), torch.arange(3)) < 1  # all right: lower, but bounded


def test_top1_top5_and_classes() -> None:
    logits = torch.tensor(
        [
            [9.0, 1, 2, 3, 4, 5],  # right
            [9.0, 1, 2, 3, 4, 5],  # index 1 is sixth: not even among five
            [9.0, 1, 2, 3, 4, 5],  # index 5 is second
        ]
    )
    result = figures(logits, torch.tensor([0, 1, 5]), list("abcdef"))
    assert (result["top1"], result["top5"]) == (0.3333, 0.6667)
    assert result["top1_95"] == [0.0615, 0.7923]
    assert result["per_class"] == {
        "a": {"pictures": 1, "top1": 1.0},
        "b": {"pictures": 1, "top1": 0.0},
        "f": {"pictures": 1, "top1": 0.0},
    }


def test_confidence_interval_of_a_share() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # the same paper, table I
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson_interval(5, 5)[1] == 1


def test_rounded_answers_keep_their_order() -> None:
    """Of a sure answer all but the first probabilities are rounded to 0; the figures are those of the logits."""
    labels = [str(number) for number in range(1000)]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 1000, generator=generator) * 2
    logits[torch.arange(200), torch.randint(1000, (200,), generator=generator)] += torch.linspace(5, 40, 200)
    targets = logits.topk(7, dim=1).indices[torch.arange(200), torch.arange(200) % 7]  # the first to the seventh
    answers = top_predictions(logits.numpy(), labels, 1000)
    rows = torch.stack([log_probabilities(answer) for answer in answers])
    exact, found = figures(logits, targets, labels), figures(rows, targets, labels)
    assert (found["top1"], found["top5"]) == (exact["top1"], exact["top5"])
    assert found["ece"] == pytest.approx(exact["ece"], abs=1e-4)


def test_calibration_by_bin() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [1.0, 0.0]])
    bins = calibration_bins(probabilities, torch.tensor([0, 1, 0, 0]))
    assert bins == [
        {"from": 0.6, "to": 0.6667, "pictures": 1, "confidence": 0.6, "accuracy": 1.0},
        {"from": 0.8667, "to": 0.9333, "pictures": 2, "confidence": 0.9, "accuracy": 0.5},
        {"from": 0.9333, "to": 1.0, "pictures": 1, "confidence": 1.0, "accuracy": 1.0},
    ]


def test_confusion_and_sources() -> None:
    card = ModelCard(name="m", architecture=Architecture("compact", 8, (2, 2), 16), num_classes=2, resize=56, crop=48)
    pictures = [
        Picture(Path(f"{n}.png"), label, source)
        for n, (label, source) in enumerate([("a", "x"), ("a", "x"), ("b", "y"), ("b", "y")])
    ]
    logits = torch.tensor([[2.0, 0], [0, 2], [0, 2], [0, 3]])
    evaluation = Evaluation(card, ["a", "b"], pictures, logits, torch.tensor([0, 0, 1, 1]))
    assert evaluation.confusion() == [
        {"label": "b", "predicted": "b", "pictures": 2},
        {"label": "a", "predicted": "a", "pictures": 1},
        {"label": "a", "predicted": "b", "pictures": 1},
    ]
    assert {name: part["top1"] for name, part in evaluation.sources().items()} == {"x": 0.5, "y": 1.0}
    assert evaluation.predictions()[1] == {"path": "1.png", "label": "a", "predicted": "b", "probability": 0.880797}
    assert evaluation.to_dict()["total"]["top1"] == 0.75
