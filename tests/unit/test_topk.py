"""Logits → the k best classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from handler.topk import Prediction, top_predictions

LABELS = ["Samoyed", "crane", "tabby", "crane"]


def indices(logits: list[float], k: int) -> list[int]:
    """The indices of one picture's predictions."""
    return [p.index for p in top_predictions(np.array([logits]), [str(i) for i in range(len(logits))], k)[0]]


def test_best_come_first_with_label_index_and_probability() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.05, 0.15]]))
    found = top_predictions(logits, LABELS, 2)
    assert [[(p.label, p.index) for p in picture] for picture in found] == [
        [("crane", 3), ("tabby", 2)],
        [("Samoyed", 0), ("crane", 3)],
    ]
    assert [p.probability for picture in found for p in picture] == pytest.approx([0.4, 0.3, 0.7, 0.15], abs=1e-6)


def test_two_classes_of_one_label_are_both_listed() -> None:
    found = top_predictions(np.array([[0.0, 5.0, 1.0, 4.0]]), LABELS, 2)[0]
    assert [(p.label, p.index) for p in found] == [("crane", 1), ("crane", 3)]


def test_all_classes_add_up_to_one() -> None:
    found = top_predictions(np.random.default_rng(0).normal(size=(3, 4)), LABELS, 4)
    for predictions in found:
        assert sorted(p.index for p in predictions) == [0, 1, 2, 3]
        assert sum(p.probability for p in predictions) == pytest.approx(1, abs=5e-6)
        assert predictions == sorted(predictions, key=lambda p: -p.probability)


@pytest.mark.parametrize(
    ("logits", "k", "expected"),
    [
        ([0.0, 5.0, 5.0, 1.0, 5.0], 4, [1, 2, 4, 3]),
        ([0.0] * 10, 3, [0, 1, 2]),
        ([0.0] * 1000, 5, [0, 1, 2, 3, 4]),
        ([-1.0, 2.0], 1, [1]),
    ],
    ids=["some", "all-of-ten", "all-of-thousand", "none"],
)
def test_of_equal_classes_the_lower_index_comes_first(logits: list[float], k: int, expected: list[int]) -> None:
    assert indices(logits, k) == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    logits = np.array([[2.0, 0.0]])
    (best, _), *_ = top_predictions(logits, ["a", "b"], 2, temperature)
    assert best.probability == pytest.approx(1 / (1 + math.exp(-2 / temperature)), abs=1e-6)


def test_huge_and_half_precision_logits_stay_probabilities() -> None:
    assert top_predictions(np.array([[1e30, -1e30]]), ["a", "b"], 2)[0] == [
        Prediction("a", 0, 1.0),
        Prediction("b", 1, 0.0),
    ]
    half = top_predictions(np.array([[1.0, 0.0]], dtype=np.float16), ["a", "b"], 1)[0][0]
    assert half.probability == pytest.approx(0.731059, abs=1e-6)


def test_probability_is_rounded_to_six_digits() -> None:
    assert top_predictions(np.array([[1.0, 0.0]]), ["a", "b"], 1)[0][0].to_dict() == {
        "label": "a",
        "index": 0,
        "probability": 0.731059,
    }


def test_no_picture_no_prediction() -> None:
    assert top_predictions(np.empty((0, 4)), LABELS, 2) == []
