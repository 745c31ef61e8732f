"""Curves as SVG that takes its colour from the page around it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the page's own text colour, which the page knows and matplotlib doesn't."""
_STYLE = Path(__file__).with_name("plots.mplstyle")
_BLUE, _ORANGE = "#3b7dd8", "#d9822b"


def learning_curves(history: Sequence[Mapping[str, float]]) -> str:
    """Loss and validation accuracy over the epochs, as SVG.

    Args:
        history: rows of ``metrics.csv``: ``epoch``, ``loss``, ``val_loss``, ``val_top1`` …
    """
    with style.context(_STYLE):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        epochs = [row["epoch"] for row in history]
        marker = "o" if len(epochs) < 3 else None  # a line needs two points
        left.plot(epochs, [row["loss"] for row in history], color=_BLUE, marker=marker, label="training")
        left.plot(epochs, [row["val_loss"] for row in history], color=_ORANGE, marker=marker, label="validation")
        left.set(xlabel="epoch", ylabel="loss")
        left.legend(frameon=False)
        accuracy = [row["val_top1"] for row in history]
        best = max(range(len(accuracy)), key=lambda i: (accuracy[i], i))
        right.plot(epochs, accuracy, color=_ORANGE, marker=marker)
        right.plot([epochs[best]], [accuracy[best]], "o", color=_ORANGE)
        right.annotate(
            f"{accuracy[best]:.3f}", (epochs[best], accuracy[best]), xytext=(0, -16), textcoords="offset points",
            ha="right",
        )  # fmt: skip
        right.set(xlabel="epoch", ylabel="validation top-1", ylim=(0, 1))
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        return _svg(figure, "Loss and validation accuracy over the epochs")


def reliability_diagram(bins: Sequence[Mapping[str, float]]) -> str:
    """Accuracy against confidence in each bin, and how many pictures it holds, as SVG.

    Args:
        bins: what ``calibration_bins`` gives.
    """
    with style.context(_STYLE):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.plot([0, 1], [0, 1], "--", color=INK, alpha=0.5, linewidth=1)
        _bars(top, bins, "accuracy", _BLUE)
        top.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o", color=_ORANGE, markersize=4)
        top.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
        _bars(bottom, bins, "pictures", _BLUE)
        bottom.set(ylabel="pictures", xlabel="probability of the answer")
        return _svg(figure, "Accuracy against the probability of the answer")


def _bars(axes: Axes, bins: Sequence[Mapping[str, float]], key: str, colour: str) -> None:
    axes.bar(
        [b["from"] for b in bins],
        [b[key] for b in bins],
        [b["to"] - b["from"] for b in bins],
        align="edge",
        color=colour,
        alpha=0.45,
        edgecolor=colour,
    )


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    svg = buffer.getvalue()
    return (
        svg[svg.index("<svg") :]
        .replace(INK, "currentColor")
        .replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    )
