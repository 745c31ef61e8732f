"""The curves of measured costs as PNG, on white."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from scripts.lib.benchmarking.costs import Costs
    from scripts.lib.benchmarking.report import Summary

_STYLE = Path(__file__).with_name("plots.mplstyle")
_COLOURS = {"float32": "#3b7dd8", "bfloat16": "#d9822b"}
_BLUE, _ORANGE, _GREEN, _GREY = "#3b7dd8", "#d9822b", "#3a9d5d", "#808080"
_DPI = 120


def plots(costs: Costs) -> dict[str, bytes]:
    """Every curve of ``costs``: name of the file to the PNG."""
    with style.context(_STYLE):
        return {
            "architectures.png": _png(_architectures(costs)),
            "batch.png": _png(_batch(costs)),
            "picture-size.png": _png(_picture_size(costs)),
            "workers.png": _png(_workers(costs)),
            "concurrency.png": _png(_concurrency(costs)),
        }


def _architectures(costs: Costs) -> Figure:
    names = list(dict.fromkeys(cost.name for cost in costs.architectures))
    precisions = list(dict.fromkeys(cost.precision for cost in costs.architectures))
    figure, axes = _figure(height=1.4 + 0.62 * len(names))
    thickness = 0.8 / len(precisions)
    for row, precision in enumerate(precisions):
        of_precision = {cost.name: cost for cost in costs.architectures if cost.precision == precision}
        times = [of_precision[name].ms.median for name in names]
        places = [index + (row - (len(precisions) - 1) / 2) * thickness for index in range(len(names))]
        bars = axes.barh(places, times, thickness * 0.9, color=_COLOURS[precision], label=precision)
        axes.bar_label(bars, [f"{time:.1f}" for time in times], padding=4)
    labels = {cost.name: f"{cost.name}\n{cost.parameters / 1e6:.1f} M parameters" for cost in costs.architectures}
    axes.set_yticks(range(len(names)), [labels[name] for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
    axes.margins(x=0.12)  # for the numbers at the ends of the bars
    axes.set(xlabel="ms a picture, network alone, one core")
    _legend(figure, axes)
    return figure


def _batch(costs: Costs) -> Figure:
    figure, axes = _figure()
    for precision in dict.fromkeys(cost.precision for cost in costs.batch):
        rows = [cost for cost in costs.batch if cost.precision == precision]
        _curve(axes, [row.size for row in rows], [row.ms for row in rows], _COLOURS[precision], precision)
    _powers(axes, [cost.size for cost in costs.batch])
    axes.set(xlabel="pictures in a batch", ylabel="ms a picture, one core")
    axes.set_ylim(bottom=0)
    _legend(figure, axes)
    return figure


def _picture_size(costs: Costs) -> Figure:
    figure, axes = _figure()
    sizes = [cost.width * cost.height / 1e6 for cost in costs.picture_size]
    _curve(axes, sizes, [cost.exact_ms for cost in costs.picture_size], _BLUE, "exact (full size)")
    _curve(axes, sizes, [cost.reduced_ms for cost in costs.picture_size], _ORANGE, "reduced (as served)")
    axes.set(xlabel="megapixels", ylabel="ms to the network's input, one core", xscale="log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    _logarithmic(axes)
    _legend(figure, axes)
    return figure


def _workers(costs: Costs) -> Figure:
    figure, axes = _figure()
    counts = [cost.workers for cost in costs.workers]
    first = costs.workers[0]
    proportional = [first.throughput.median * count / first.workers for count in counts]
    axes.plot(counts, proportional, "--", color=_GREY, linewidth=1, label="in proportion")
    _curve(axes, counts, [cost.throughput for cost in costs.workers], _BLUE, "measured")
    axes.set_xticks(counts)
    axes.set(xlabel="workers", ylabel="requests/s")
    axes.set_ylim(bottom=0)
    _legend(figure, axes)
    return figure


def _concurrency(costs: Costs) -> Figure:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = [cost.concurrency for cost in costs.concurrency]
    _curve(left, counts, [cost.throughput for cost in costs.concurrency], _BLUE, "requests/s")
    left.set(ylabel="requests/s")
    left.set_ylim(bottom=0)
    for key, colour in (("p99_ms", _ORANGE), ("p95_ms", _GREEN), ("p50_ms", _BLUE)):
        _curve(right, counts, [getattr(cost, key) for cost in costs.concurrency], colour, key.removesuffix("_ms"))
    right.set(ylabel="latency, ms")
    _logarithmic(right)
    right.legend(frameon=False)
    for axes in (left, right):
        _powers(axes, counts)
        axes.set(xlabel="concurrent connections")
    return figure


def _figure(height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.subplots()


def _curve(axes: Axes, x: Sequence[float], y: Sequence[Summary], colour: str, label: str) -> None:
    """Medians as a line, ranges as a band around it."""
    axes.plot(x, [each.median for each in y], "o-", color=colour, markersize=4, label=label)
    axes.fill_between(x, [each.low for each in y], [each.high for each in y], color=colour, alpha=0.2, linewidth=0)


def _powers(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with a tick at each value."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_number))


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with ticks at 1, 2 and 5 times the powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_number))


def _number(value: float, _position: object) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, where no curve is."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
