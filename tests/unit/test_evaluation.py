"""The figures of a classifier, against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from scripts.lib.evaluation import expected_calibration_error, figures, fit_temperature


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
    assert result["per_class"] == {
        "a": {"pictures": 1, "top1": 1.0},
        "b": {"pictures": 1, "top1": 0.0},
        "f": {"pictures": 1, "top1": 0.0},
    }
