"""Samples → medians, ranges and ratios → JSON and Markdown."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.lib.benchmarking.measure import Sample

PACKAGES = ("torch", "torchvision", "torchserve", "pillow", "numpy")
MEGABYTE = 1e6
MISSING = "–"
PERCENTILES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class Figure:
    """One row of the report: ``key`` in a sample, its ``title`` with the unit, the number of units in 1, decimals."""

    key: str
    title: str
    scale: float = 1.0
    digits: int = 1


@dataclass(frozen=True)
class Summary:
    """Median and range of a figure over the repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """The summary of at least one value.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("a summary of no values; expected at least one")
        return cls(statistics.median(values), min(values), max(values))

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """``median (low–high)``, each times ``scale``."""
        median, low, high = (f"{value * scale:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low}–{high})"


def figures(concurrencies: Sequence[int], rates: Sequence[float] = ()) -> list[Figure]:
    """The rows of the report, in order.

    Args:
        concurrencies: of the closed loops.
        rates: of the open loops, in requests/s.
    """
    rows = [
        Figure("start_s", "start to READY, s", digits=2),
        Figure("start_cpu", "processor time of a worker until READY, s", digits=2),
        Figure("rss", "memory of a worker, RSS, MB", 1 / MEGABYTE, 0),
        Figure("pss", "memory of a worker, PSS, MB", 1 / MEGABYTE, 0),
        Figure("private", "memory of a worker, private, MB", 1 / MEGABYTE, 0),
        Figure("total_pss", "memory of all its processes, PSS, MB", 1 / MEGABYTE, 0),
    ]
    for n in concurrencies:
        rows.append(Figure(f"c{n}_throughput", f"requests/s at concurrency {n}", digits=2))
        rows += [Figure(f"c{n}_{p}", f"latency at concurrency {n}, {p}, ms", 1000, 0) for p in PERCENTILES]
        rows.append(Figure(f"c{n}_cpu", f"processor time a request at concurrency {n}, ms", 1000))
    for rate in rates:
        rows.append(Figure(f"r{rate:g}_answered", f"answered at {rate:g} requests/s, %", 100))
        rows += [Figure(f"r{rate:g}_{p}", f"latency at {rate:g} requests/s, {p}, ms", 1000, 0) for p in PERCENTILES]
    return rows


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratio of each repetition, ours to theirs: both were measured one after the other.

    Raises:
        ValueError: the repetitions don't pair up.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} repetitions against {len(theirs)}; expected as many")
    return [a / b for a, b in zip(ours, theirs)]


def summarise(samples: Mapping[str, Sequence[Sample]], rows: Sequence[Figure]) -> dict[str, dict[str, Any]]:
    """Medians, ranges and ratios of all figures that were measured.

    Args:
        samples: contender to its samples, one a repetition; the first contender is the one that is
            compared with each other one.
        rows: the figures.

    Returns:
        Figure to ``{"contenders": {name: Summary}, "ratios": {name of the other: Summary}}``. A
        contender that lacks a figure isn't among its ``contenders``, and a ratio needs both.
    """
    first, *others = samples
    summary: dict[str, dict[str, Any]] = {}
    for row in rows:
        values = {
            name: [sample[row.key] for sample in each]
            for name, each in samples.items()
            if all(row.key in sample for sample in each)
        }
        if not values:
            continue  # this system doesn't tell
        summary[row.key] = {
            "contenders": {name: Summary.of(each) for name, each in values.items()},
            "ratios": {
                name: Summary.of(ratios(values[first], values[name]))
                for name in others
                if first in values and name in values and all(values[name])
            },
        }
    return summary


def markdown(report: Mapping[str, Any], rows: Sequence[Figure]) -> str:
    """The report as a Markdown table with what the reader must know around it."""
    summary = summarise(report["samples"], rows)
    names = list(report["samples"])
    first, *others = names
    machine, options = report["machine"], report["options"]
    heads = ["figure", *names, *(f"{first} / {other}" for other in others)]
    lines = [
        f"{report['model']['name']} ({report['model']['architecture']}, {report['model']['classes']} classes); "
        f"{machine['processor']}, {machine['cores']} cores, load before {machine['load_before']}; {report['date']}",
        "",
        *([f"**{report['model']['note']}**", ""] if report["model"]["note"] else []),
        *(f"- {name}: {what}" for name, what in report["contenders"].items()),
        "",
        f"Median (lowest–highest) of {options['repeats']} interleaved starts, after {options['warm_up']} requests a "
        f"worker {options['requests']} at each concurrency in a closed loop{_open_loops(options)}. A ratio is the "
        "median of the repetitions' own ratios; – is what a contender doesn't have.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for row in rows:
        if row.key in summary:
            each = summary[row.key]
            found, compared = each["contenders"], each["ratios"]
            cells = [found[name].text(row.scale, row.digits) if name in found else MISSING for name in names]
            cells += [compared[name].text(digits=2) if name in compared else MISSING for name in others]
            lines.append(f"| {' | '.join([row.title, *cells])} |")
    lines += ["", *answer_lines(report["answers"])]
    return "\n".join(lines) + "\n"


def _open_loops(options: Mapping[str, Any]) -> str:
    if not options["rates"]:
        return ""
    return ", and at each rate in an open loop, where a latency counts from the time at which the request was due"


def answer_lines(answers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A line a picture: what each contender said, and whether all said the same."""
    lines = []
    for picture in next(iter(answers.values())):
        said = {name: each[picture] for name, each in answers.items()}
        same = len({answer["label"] for answer in said.values()}) == 1
        told = ", ".join(f"{name} {answer['label']} {answer['probability']:.3f}" for name, answer in said.items())
        lines.append(f"- answers to {picture}: {told} ({'the same label' if same else 'NOT the same label'})")
    return lines


def as_json(report: Mapping[str, Any], rows: Sequence[Figure]) -> dict[str, Any]:
    """The report with every sample, and with medians and ranges, as plain JSON types in the samples' units."""
    summary = {
        key: {
            kind: {name: {"median": s.median, "min": s.low, "max": s.high} for name, s in each.items()}
            for kind, each in kinds.items()
        }
        for key, kinds in summarise(report["samples"], rows).items()
    }
    return {**report, "summary": summary}


def machine_facts() -> dict[str, Any]:
    """What the machine is: processor, logical cores, memory in bytes, system, load."""
    import psutil

    return {
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": load_average(),
    }


def versions(java: str) -> dict[str, str]:
    """Versions of Python, Java and the packages that matter."""
    return {"python": platform.python_version(), "java": java, **{name: metadata.version(name) for name in PACKAGES}}


def load_average() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where the system doesn't say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def processor() -> str:
    """The processor's name."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
