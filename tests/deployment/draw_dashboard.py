"""The dashboard's queries as one picture, for docs/monitoring.md: Grafana's panels, drawn with matplotlib.

    python -m tests.deployment.draw_dashboard docs/monitoring/dashboard.png

serves the bundled model, loads it for some minutes with good and broken pictures and bursts, lets a real Prometheus
scrape it, and draws what ``query_range`` answers.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib as mpl
import requests
from PIL import Image

from tests.support.pictures.golden import GOLDEN
from tests.support.servers.front_door import front_door
from tests.support.servers.prometheus import TIMEOUT_S, Panel, Prometheus, panels, scraping
from tests.support.servers.running import serving

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

LOAD_SECONDS = 300
COLOURS = ["#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#14b8a6", "#b59f3b", "#8c8c8c", "#e685b5", "#1f60c4"]
NAMED = {"p50": "#56a64b", "p95": "#ff9830", "p99": "#e02f44", "answered": "#56a64b", "arrived": "#222222"}


def draw(prometheus: Prometheus, path: Path, seconds: float, rate_interval: str = "30s") -> None:
    """Draw the dashboard's last ``seconds`` seconds into a PNG."""
    end = time.time()
    every = panels(rate_interval)
    numbers = [panel for panel in every if panel.kind == "stat"]
    charts = [panel for panel in every if panel.kind != "stat"]
    columns = 4
    rows = -(-len(charts) // columns)
    figure = plt.figure(figsize=(16, 1.2 + 2.7 * rows), layout="constrained", dpi=90)
    top, grid = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 2.7 * rows])[:, 0]
    for axes, panel in zip(top.subplots(1, len(numbers)), numbers):
        _number(axes, panel, prometheus)
    cells = grid.subplots(rows, columns).flat
    for panel, axes in zip(charts, cells):
        if panel.kind == "bargauge":
            _bars(axes, panel, prometheus)
        else:
            _lines(axes, panel, prometheus, end - seconds, end)
    for axes in cells:
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": ""})
    plt.close(figure)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128)  # a third of the bytes
    small.save(path, optimize=True)


def _name(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend).strip()


def _text(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"
    if unit == "percent":
        return f"{value:.0f} %"
    if unit == "s":
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB"
    return f"{value:.3g}"


def _number(axes: Axes, panel: Panel, prometheus: Prometheus) -> None:
    ((query, legend),) = panel.queries
    series = prometheus.query(query)
    if panel.title == "Alerts":
        text = "\n".join(_name("{{alertname}}", s.labels) for s in series) or "none"
    else:
        text = _text(series[0].points[0][1], panel.unit) if series else "–"
    axes.set_title(panel.title, fontsize=10)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=9 if "\n" in text or len(text) > 12 else 20)
    axes.set(xticks=[], yticks=[])
    axes.set_facecolor("#f2f5f9")
    for spine in axes.spines.values():
        spine.set_visible(False)
    assert legend


def _lines(axes: Axes, panel: Panel, prometheus: Prometheus, start: float, end: float) -> None:
    colours = iter(COLOURS * 10)
    for query, legend in panel.queries:
        for series in prometheus.query_range(query, start, end, max(1.0, (end - start) / 150)):
            name = re.sub(r"\b127\.0\.0\.1:\d+\b ?", "", _name(legend, series.labels)).strip()
            times = [(t - end) / 60 for t, _ in series.points]
            values = [v for _, v in series.points]
            axes.plot(times, values, label=name or None, color=NAMED.get(name) or next(colours), linewidth=1.6)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlim((start - end) / 60, 0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} min" if x else "now"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _text(y, panel.unit)))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper left")


def _bars(axes: Axes, panel: Panel, prometheus: Prometheus) -> None:
    names = [legend for _, legend in panel.queries][::-1]
    found = [prometheus.query(query) for query, _ in panel.queries][::-1]
    values = [series[0].points[0][1] if series else 0.0 for series in found]
    colours = ["#8e8e8e" if "week" in name else COLOURS[0] for name in names]
    axes.barh(names, values, color=colours)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def load(url: str, seconds: float) -> None:
    """Good pictures mostly, a broken one in twelve, twice a burst that the queue doesn't hold; it rises and falls."""
    pictures = [golden.path.read_bytes() for golden in GOLDEN]
    begin = time.monotonic()
    chance = random.Random(0)

    def send(picture: bytes) -> None:
        headers = {"X-Request-Start": f"t={time.time():.3f}"}
        requests.put(url, data=picture, headers=headers, timeout=TIMEOUT_S)

    def client(number: int) -> None:
        while (passed := time.monotonic() - begin) < seconds:
            if passed / seconds * 5 % 5 < number:  # a client more in each fifth
                time.sleep(0.2)
                continue
            send(b"no picture" if chance.random() < 1 / 12 else chance.choice(pictures))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(5)]
    for share in (0.5, 0.75):
        threads += [threading.Timer(share * seconds, send, [pictures[0]]) for _ in range(180)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(path: Path) -> None:
    """Serve, load, scrape and draw."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), "--workers", "2") as server:
        data = Path(folder, "prometheus")
        data.mkdir()
        with (
            front_door(f"127.0.0.1:{server.port}") as door,
            scraping(server.port + 2, door.metrics_port, data) as prometheus,
        ):
            load(server.predictions, LOAD_SECONDS)
            draw(prometheus, path, LOAD_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
