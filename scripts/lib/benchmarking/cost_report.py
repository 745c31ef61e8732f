"""Measured costs → costs.json, costs.md and the plots beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.lib.benchmarking.cost_server import REFUSAL_PAUSE_S
from scripts.lib.benchmarking.costs import PICTURES_PER_HOUR, Costs, LoadCost
from scripts.lib.console import CommandError
from scripts.lib.model_folder import json_bytes, write_atomically
from scripts.lib.reporting.cost_plots import plots


def write_costs(costs: Costs, folder: Path) -> str:
    """Write ``costs.json``, ``costs.md`` and the plots into ``folder``; returns the Markdown.

    Raises:
        CommandError: the folder can't be written.
    """
    text = markdown(costs)
    files = {"costs.json": json_bytes(asdict(costs)), "costs.md": text.encode(), **plots(costs)}
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise CommandError(f"the report can't be written to {folder}: {error.strerror or error}") from None
    return text


def markdown(costs: Costs) -> str:
    """The report: what was measured on what, and a table and a plot a curve."""
    facts = costs.facts
    machine, options, picture = facts["machine"], facts["options"], facts["picture"]
    cores, precision = options["workers"], facts["precision"]
    resized = f"{facts['resized_picture']}, resized" if facts["resized_picture"] else "generated"
    served = f"densenet121 in {precision} ({facts['runtime']}), a JPEG of {_px(picture)} and {_kb(picture['bytes'])} kB"
    sections = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, {machine['system']}; "
        f"load {machine['load_before']} before and {machine['load_after']} after; {facts['date']}",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"Median (lowest–highest) of {options['repeats']} interleaved repetitions. The DenseNets of 1000 classes have "
        "random weights, for timing only: they cost what trained ones cost, and their answers mean nothing.",
        "## Architecture",
        f"The network alone, one picture at a time, on one core; runtime {facts['runtime']}.",
        _table(
            ("network", "parameters, million", "input, px", "precision", "ms a picture"),
            (
                (c.name, f"{c.parameters / 1e6:.1f}", f"{c.input_px} × {c.input_px}", c.precision, c.ms.text())
                for c in costs.architectures
            ),
        ),
        "![Time a picture of each network](architectures.png)",
        "## Batch",
        f"densenet121 alone on one core; runtime {facts['runtime']}.",
        _table(
            ("pictures in a batch", "precision", "ms a picture"),
            ((c.size, c.precision, c.ms.text()) for c in costs.batch),
        ),
        "![Time a picture by size of the batch](batch.png)",
        "## Size of the picture",
        f"From the file to the network's input on one core; JPEGs, {resized}. Reduced: decoded at 1/2, 1/4 or 1/8 of "
        "the size where that is enough, as the server does it; exact: decoded at full size.",
        _table(
            ("megapixels", "px", "file, kB", "reduced, ms", "exact, ms"),
            (
                (
                    f"{c.width * c.height / 1e6:.2g}",
                    f"{c.width} × {c.height}",
                    _kb(c.bytes),
                    c.reduced_ms.text(),
                    c.exact_ms.text(),
                )
                for c in costs.picture_size
            ),
        ),
        "![Time of reading a picture by its size](picture-size.png)",
        "## Workers",
        f"The whole server: {served}, two connections a worker. The client that sends runs on the same machine and "
        "takes its share of it; its processor time is the last column.",
        _loads(costs.workers, "workers"),
        "![Requests a second by number of workers](workers.png)",
        "## Concurrency",
        f"The whole server with {_workers(cores)}, one a core: {served}. Refused requests (503: the queue is full) "
        f"were repeated after {REFUSAL_PAUSE_S:g} s and count neither as requests nor in the latency; any other "
        "failure would have ended the measurement.",
        _loads(costs.concurrency, "concurrency"),
        "![Requests a second and latency by concurrency](concurrency.png)",
        f"The bundled model, with {_workers(cores)} too:",
        _loads(costs.bundled, "concurrency"),
        f"## Machines for {PICTURES_PER_HOUR:,} pictures an hour",
        f"Machines like this one, {_workers(cores)} each, at {PICTURES_PER_HOUR / 3600:.0f} requests/s in all and "
        "without reserve. Measured is the best concurrency above. Estimated is what densenet121's requests cost "
        "beside its network, and the other network's own time.",
        _table(
            ("network", "", "server's processor time, ms a request", "requests/s of a machine", "machines"),
            (
                (
                    m.name,
                    "estimated" if m.estimated else "measured",
                    f"{m.cpu_ms:.1f}",
                    f"{m.throughput:.1f}",
                    f"{math.ceil(m.machines)} ({m.machines:.1f})",
                )
                for m in costs.machines
            ),
        ),
    ]
    return "# What a request costs\n\n" + "\n\n".join(sections) + "\n"


def _loads(loads: Sequence[LoadCost], key: str) -> str:
    heads = (
        key,
        "requests/s",
        "p50, ms",
        "p95, ms",
        "p99, ms",
        "refused",
        "server, CPU ms a request",
        "client, CPU ms",
    )
    return _table(
        heads,
        (
            (
                getattr(c, key),
                c.throughput.text(),
                *(each.text(digits=0) for each in (c.p50_ms, c.p95_ms, c.p99_ms, c.refused)),
                c.cpu_ms.text(),
                c.client_cpu_ms.text(),
            )
            for c in loads
        ),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _px(picture: dict[str, int]) -> str:
    return f"{picture['width']} × {picture['height']} px"


def _kb(size: int) -> str:
    return f"{size / 1000:,.0f}"
