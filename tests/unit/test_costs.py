"""The measured costs: arithmetic, report, plots, pictures; networks and the client on small stand-ins."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from handler.preprocessing import Preprocessing
from scripts import measure_costs
from scripts.lib.benchmarking import cost_report, cost_server, costs, photographs
from scripts.lib.benchmarking.cost_server import Load, measure_load
from scripts.lib.benchmarking.costs import (
    FULL,
    QUICK,
    BatchCost,
    Costs,
    LoadCost,
    Machines,
    NetworkCost,
    PictureCost,
    machines_needed,
)
from scripts.lib.benchmarking.report import Summary
from scripts.lib.console import CommandError
from scripts.lib.model_folder import ModelFolder
from scripts.lib.reporting import cost_plots


def exactly(value: float) -> Summary:
    """A figure that was the same each time."""
    return Summary(value, value, value)


def a_network(name: str, ms: float, precision: str = "float32") -> NetworkCost:
    """A network alone."""
    return NetworkCost(name, 7_978_856, 224, precision, exactly(ms))


def a_load(throughput: float, cpu_ms: float, model: str = "densenet121", concurrency: int = 4) -> LoadCost:
    """A server with two workers under load."""
    return LoadCost(
        model=model,
        workers=2,
        concurrency=concurrency,
        throughput=exactly(throughput),
        p50_ms=exactly(40),
        p95_ms=exactly(50),
        p99_ms=exactly(60),
        cpu_ms=exactly(cpu_ms),
        client_cpu_ms=exactly(1.5),
        refused=exactly(3),
    )


# ---- machines ----------------------------------------------------------------------------------


def test_machines_of_a_measured_model_follow_from_its_requests() -> None:
    loads = [a_load(50, 36), a_load(100, 20, concurrency=8), a_load(80, 24, concurrency=16)]
    (row,) = machines_needed([a_network("densenet121", 10)], loads, "float32")
    assert row == Machines("densenet121", False, 20, 100, 1e6 / 3600 / 100)


def test_machines_of_another_network_are_estimated() -> None:
    # densenet121's request takes 20 ms, 10 of them in its network: with one of 30 ms it takes 40, and half as many fit
    networks = [a_network("densenet121", 10), a_network("densenet161", 30)]
    row = machines_needed(networks, [a_load(100, 20)], "float32")[1]
    assert row == Machines("densenet161", True, 40, 50, 1e6 / 3600 / 50)


def test_machines_count_the_precision_that_is_served() -> None:
    networks = [a_network(n, ms, p) for n, ms, p in [("densenet121", 90, "float32"), ("densenet121", 10, "bfloat16")]]
    networks += [a_network("pets", 30, "float32"), a_network("pets", 5, "bfloat16")]
    rows = machines_needed(networks, [a_load(100, 20), a_load(125, 16, "pets")], "bfloat16")
    assert [(row.name, row.estimated, row.cpu_ms, row.throughput) for row in rows] == [
        ("densenet121", False, 20, 100),
        ("pets", False, 16, 125),
    ]


@pytest.mark.parametrize(
    ("cores", "full", "quick"),
    [(1, (1,), (1,)), (2, (1, 2), (1, 2)), (6, (1, 2, 4, 6), (1, 6)), (8, (1, 2, 4, 8), (1, 8))],
)
def test_numbers_of_workers(cores: int, full: tuple[int, ...], quick: tuple[int, ...]) -> None:
    assert FULL.workers(cores) == full
    assert QUICK.workers(cores) == quick


# ---- pictures ----------------------------------------------------------------------------------


def test_generated_pictures_have_their_size_and_are_always_the_same() -> None:
    picture = photographs.generated(400, 300)
    assert (picture.width, picture.height) == (400, 300)
    with Image.open(io.BytesIO(picture.content)) as image:
        assert (image.format, image.size) == ("JPEG", (400, 300))
    assert picture == photographs.generated(400, 300)


@pytest.mark.parametrize("megapixels", [0.05, 0.8, 2])
def test_pictures_of_a_size(megapixels: float) -> None:
    picture = photographs.of_size(megapixels, None)
    assert picture.width * picture.height == pytest.approx(megapixels * 1e6, rel=0.01)
    assert picture.width / picture.height == pytest.approx(4 / 3, rel=0.01)


def test_a_picture_of_ones_own_keeps_its_proportions(tmp_path: Path) -> None:
    path = tmp_path / "tall.png"
    Image.fromarray(np.zeros((400, 100, 3), np.uint8)).save(path)
    own = photographs.read_photograph(path)
    assert (own.name, own.content, own.width, own.height) == ("tall.png", path.read_bytes(), 100, 400)
    resized = photographs.of_size(0.01, own)
    assert (resized.name, resized.width, resized.height) == ("tall.jpg", 50, 200)


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    with pytest.raises(CommandError, match="No such file or directory; give the path of a picture"):
        photographs.read_photograph(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CommandError, match=r"--picture .*p\.jpg: received 7 bytes that are no picture"):
        photographs.read_photograph(path)


# ---- computations ------------------------------------------------------------------------------


def test_networks_and_batches(tiny_model: ModelFolder) -> None:
    (network,) = costs.network_costs([tiny_model], "torch", ["float32"], 0.0, 2)
    assert (network.name, network.input_px, network.precision) == ("densenet-tiny", 64, "float32")
    assert 10_000 < network.parameters < 1_000_000
    assert 0 < network.ms.low <= network.ms.median <= network.ms.high
    batches = costs.batch_costs(tiny_model, "torch", ["float32"], [1, 3], 0.0, 1)
    assert [batch.size for batch in batches] == [1, 3]
    assert all(batch.ms.median > 0 for batch in batches)


def test_times_of_a_batch_are_a_picture(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "interleaved", lambda what, calls, *_: {key: Summary(8, 4, 12) for key in calls})
    (batch,) = costs.batch_costs(tiny_model, "torch", ["float32"], [4], 0.0, 1)
    assert batch.ms == Summary(2, 1, 3)


def test_reading_pictures(tiny_model: ModelFolder) -> None:
    small, large = costs.picture_costs(Preprocessing.of(tiny_model.card), [0.01, 0.3], None, 0.0, 1)
    assert (small.width, small.height) == (115, 86)
    assert large.bytes > small.bytes > 0
    assert min(small.reduced_ms.low, small.exact_ms.low, large.reduced_ms.low, large.exact_ms.low) > 0


def test_repetitions_are_interleaved() -> None:
    called: list[str] = []
    times = costs.interleaved("x", {name: partial(called.append, name) for name in "ab"}, 0.0, 2)
    assert "".join(called) == "aaabbb" * 2  # an unmeasured call and two measured ones, in turn
    assert set(times) == {"a", "b"}


# ---- the server --------------------------------------------------------------------------------


def test_figures_of_a_load() -> None:
    load = Load(seconds=2.0, latencies=(0.1, 0.2, 0.3, 0.4), refused=3, server_cpu=0.2, client_cpu=0.02)
    figures = load.figures()
    assert figures["throughput"] == 2
    assert figures["p50_ms"] == pytest.approx(250)
    assert figures["p99_ms"] == pytest.approx(397)
    assert (figures["cpu_ms"], figures["client_cpu_ms"], figures["refused"]) == (50, 5, 3)
    row = LoadCost.of("m", 2, 4, [load, replace(load, seconds=4.0), replace(load, seconds=1.0)])
    assert row.throughput == Summary(2, 1, 4)


@contextmanager
def answering(*statuses: int) -> Iterator[int]:
    """The port of a server in this process that answers with ``statuses`` in turn."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(0.002)
            self.send_response(statuses[len(received) % len(statuses)])
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert set(received) <= {b"picture"}


def a_stretch(port: int, concurrency: int = 3, seconds: float = 0.2) -> Load:
    """A short load; the server's processes are this one."""
    return measure_load(port, os.getpid(), b"picture", concurrency, seconds, lead=0.02)


def test_a_stretch_of_load() -> None:
    with answering(200) as port:
        load = a_stretch(port)
    assert load.seconds >= 0.2
    assert load.latencies
    assert all(took >= 0.002 for took in load.latencies)
    assert load.refused == 0
    assert load.client_cpu > 0
    assert load.server_cpu == pytest.approx(load.client_cpu, abs=0.05)  # in steps of 10 ms


def test_refusals_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_server, "REFUSAL_PAUSE_S", 0.001)
    with answering(200, 503) as port:
        load = a_stretch(port)
    assert load.refused > 0
    assert load.latencies


@pytest.mark.parametrize(
    ("statuses", "message"),
    [((500,), r"answered with 500, expected 200: b'\{\}'"), ((503,), "answered no request with 200 in 0.2 s")],
    ids=["failure", "refusals"],
)
def test_a_server_that_fails_ends_the_measurement(statuses: tuple[int, ...], message: str) -> None:
    with answering(*statuses) as port, pytest.raises(CommandError, match=message):
        a_stretch(port)


def test_a_server_that_is_gone() -> None:
    with answering(200) as port:
        pass
    with pytest.raises(CommandError, match="the server didn't answer: ConnectionRefusedError"):
        a_stretch(port)


def test_a_process_that_is_gone() -> None:
    with psutil.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with answering(200) as port, pytest.raises(CommandError, match="ended while it was measured"):
        measure_load(port, process.pid, b"picture", 1, 0.1, lead=0.0)


def test_processor_time_counts_children() -> None:
    before = cost_server.family_seconds(psutil.Process())
    with psutil.Popen([sys.executable, "-c", "sum(range(10**7))"]) as child:
        child.wait()
    assert cost_server.family_seconds(psutil.Process()) > before


# ---- report ------------------------------------------------------------------------------------


@pytest.fixture
def measured() -> Costs:
    """What a small run measured."""
    networks = [a_network("densenet121", 50), a_network("densenet121", 12, "bfloat16")]
    networks += [a_network("densenet161", 100), a_network("densenet161", 24, "bfloat16")]
    loads = [a_load(40, 24), a_load(80, 24, concurrency=128)]
    return Costs(
        facts={
            "date": "2026-01-02T03:04:05+00:00",
            "machine": {
                **{"processor": "a processor", "cores": 2, "memory": 8 * 2**30, "system": "a system"},
                **{"load_before": 0.5, "load_after": 1.5},
            },
            "versions": {"python": "3.11.7", "torch": "2.14.1"},
            "options": {"repeats": 3, "workers": 2},
            "runtime": "openvino",
            "precision": "bfloat16",
            "picture": {"name": "generated.jpg", "bytes": 562_000, "width": 1546, "height": 1213},
            "resized_picture": None,
        },
        architectures=networks,
        batch=[BatchCost(size, "bfloat16", Summary(12 / size, 10 / size, 15 / size)) for size in (1, 2, 4)],
        picture_size=[
            PictureCost(258, 194, 20_000, exactly(0.7), exactly(0.7)),
            PictureCost(8000, 6000, 15_000_000, exactly(150), exactly(520)),
        ],
        workers=[replace(a_load(25, 24), workers=1), a_load(40, 24)],
        concurrency=loads,
        bundled=[a_load(90, 15, "densenet-pets")],
        machines=machines_needed(networks, loads, "bfloat16"),
    )


def test_markdown(measured: Costs) -> None:
    text = cost_report.markdown(measured)
    assert "a processor, 2 cores, 8 GiB, a system; load 0.5 before and 1.5 after; 2026-01-02T03:04:05+00:00" in text
    assert "python 3.11.7, torch 2.14.1" in text
    assert "Median (lowest–highest) of 3 interleaved repetitions" in text
    assert "random weights, for timing only" in text
    assert "| densenet161 | 8.0 | 224 × 224 | bfloat16 | 24.0 (24.0–24.0) |" in text
    assert "| 4 | bfloat16 | 3.0 (2.5–3.8) |" in text
    assert "JPEGs, generated." in text
    assert "| 48 | 8000 × 6000 | 15,000 | 150.0 (150.0–150.0) | 520.0 (520.0–520.0) |" in text
    assert "densenet121 in bfloat16 (openvino), a JPEG of 1546 × 1213 px and 562 kB" in text
    assert "| 128 | 80.0 (80.0–80.0) | 40 (40–40) | 50 (50–50) | 60 (60–60) | 3 (3–3) | 24.0 (24.0–24.0) |" in text
    assert "| densenet121 | measured | 24.0 | 80.0 | 4 (3.5) |" in text
    assert "| densenet161 | estimated | 36.0 | 53.3 | 6 (5.2) |" in text


def test_markdown_names_the_picture_of_ones_own(measured: Costs) -> None:
    text = cost_report.markdown(replace(measured, facts={**measured.facts, "resized_picture": "dog.jpg"}))
    assert "JPEGs, dog.jpg, resized." in text


@pytest.mark.slow
def test_report_is_written(measured: Costs, tmp_path: Path) -> None:
    text = cost_report.write_costs(measured, tmp_path / "out")
    assert (tmp_path / "out" / "costs.md").read_text(encoding="utf-8") == text
    data = json.loads((tmp_path / "out" / "costs.json").read_bytes())
    assert data["batch"][1] == {"size": 2, "precision": "bfloat16", "ms": {"median": 6, "low": 5, "high": 7.5}}
    named = {line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    plots = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert named == plots == {"architectures.png", "batch.png", "concurrency.png", "picture-size.png", "workers.png"}
    for name in plots:
        path = tmp_path / "out" / name
        assert path.stat().st_size < 200_000
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CommandError, match=r"can't be written to .*file"):
        cost_report.write_costs(measured, tmp_path / "file")


def test_plots_of_one_point(measured: Costs) -> None:
    one = replace(measured, workers=measured.workers[:1], batch=measured.batch[:1])
    assert cost_plots.plots(one)["workers.png"].startswith(b"\x89PNG")


# ---- the command -------------------------------------------------------------------------------


def test_defaults() -> None:
    args = measure_costs.build_parser().parse_args(["--out", "folder"])
    assert (args.out, args.picture, args.repeats, args.quick) == (Path("folder"), None, 3, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "--out"), (["--out", "folder", "--repeats", "0"], "expected at least 1")],
    ids=["no-out", "no-repeats"],
)
def test_wrong_use_exits_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        measure_costs.build_parser().parse_args(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
