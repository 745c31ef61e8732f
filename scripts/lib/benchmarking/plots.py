"""The report's pictures: PNG on white, which reads on a light page and on a dark one."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from scripts.lib.benchmarking.report import Summary

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "figure.facecolor": "white",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Seven that people with any colour vision tell apart (Okabe and Ito, "Color Universal Design", 2008)."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DPI = 110
_LOG_FROM = 10
"""Largest by smallest value above which an axis is logarithmic: else the small ones lie on the axis."""


def draw(
    summary: Mapping[str, Mapping[str, Any]], names: Sequence[str], concurrencies: Sequence[int]
) -> dict[str, bytes]:
    """All plots: file name to PNG.

    Args:
        summary: what ``report.summarise`` gives.
        names: the contenders, in order; each keeps its colour in all plots.
        concurrencies: at which they were measured.
    """
    highest = max(concurrencies)
    with style.context(["default", _STYLE]):
        return {
            "throughput.png": _png(
                lambda axes: _lines(axes, summary, names, concurrencies, "throughput", "requests/s", 1)
            ),
            "latency.png": _png(
                lambda axes: _lines(axes, summary, names, concurrencies, "p50", "latency, median, ms", 1000)
            ),
            "cpu.png": _png(lambda axes: _bars(axes, summary, names, f"c{highest}_cpu", highest), 1 + 0.4 * len(names)),
        }


def _lines(
    axes: Axes,
    summary: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    concurrencies: Sequence[int],
    key: str,
    label: str,
    scale: float,
) -> None:
    """A line a contender over the concurrency: medians, and the ranges as bars beside each other."""
    ordered = sorted(concurrencies)
    values: list[float] = []
    for place, name in enumerate(names):
        found = [
            (position, summary[f"c{n}_{key}"]["contenders"][name])
            for position, n in enumerate(ordered)
            if name in summary.get(f"c{n}_{key}", {"contenders": {}})["contenders"]
        ]
        shift = 0.3 * ((place + 0.5) / len(names) - 0.5)
        summaries: list[Summary] = [each for _, each in found]
        medians = [each.median * scale for each in summaries]
        below = [(each.median - each.low) * scale for each in summaries]
        above = [(each.high - each.median) * scale for each in summaries]
        values += medians
        axes.errorbar(
            [position + shift for position, _ in found],
            medians,
            yerr=[below, above],
            color=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
            linestyle="-" if place < len(_COLOURS) else "--",
            markersize=5,
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(ordered)), [str(n) for n in ordered])
    axes.set(xlabel="concurrency (connections that send at a time)", ylabel=label, xlim=(-0.4, len(ordered) - 0.6))
    if min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        axes.set_yscale("log", subs=[2, 5])
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(plain)
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))


def _bars(
    axes: Axes, summary: Mapping[str, Mapping[str, Any]], names: Sequence[str], key: str, concurrency: int
) -> None:
    """A bar a contender: processor time a request, with its value at its end."""
    found: Mapping[str, Summary] = summary.get(key, {"contenders": {}})["contenders"]
    shown = [name for name in names if name in found]
    medians = [found[name].median * 1000 for name in shown]
    ranges = [
        [(found[name].median - found[name].low) * 1000 for name in shown],
        [(found[name].high - found[name].median) * 1000 for name in shown],
    ]
    colours = [_COLOURS[names.index(name) % len(_COLOURS)] for name in shown]
    axes.barh(shown, medians, 0.6, xerr=ranges, color=colours, alpha=0.8, error_kw={"capsize": 3})
    for row, name in enumerate(shown):
        axes.annotate(
            f"{medians[row]:.3g}",
            (found[name].high * 1000, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=f"processor time a request at concurrency {concurrency}, ms")


def _png(plot: Callable[[Axes], None], height: float = 4.2) -> bytes:
    figure = Figure(figsize=(8, height), layout="constrained")
    plot(figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
