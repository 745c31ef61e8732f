"""The benchmark's arithmetic, report, options and stock archive; the client against a small server in this process."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from handler.card import ARCHITECTURES
from handler.network import load_network
from handler.preprocessing import Preprocessing
from handler.runtimes import has_bfloat16
from scripts import benchmark
from scripts.lib import paths, precision
from scripts.lib.benchmarking import (
    alternatives,
    contenders,
    measure,
    photographs,
    report,
    session,
    subject,
    torchserve,
)
from scripts.lib.benchmarking.alternatives import Alternative
from scripts.lib.benchmarking.bare import Bare, LoopProbe
from scripts.lib.benchmarking.contenders import Answer, Contender, HttpContender, Picture, Request
from scripts.lib.benchmarking.measure import Client, Load, OpenLoad, Plan, percentile
from scripts.lib.benchmarking.names import KINDS, Wanted
from scripts.lib.benchmarking.registry import make_contender
from scripts.lib.benchmarking.report import Figure, Summary
from scripts.lib.benchmarking.subject import Subject
from scripts.lib.benchmarking.torchserve import Ours, Stock
from scripts.lib.console import CommandError
from scripts.lib.model_folder import ModelFolder, write_model_folder
from tests.support.servers.worker import TINY, tiny_card, tiny_state

PICTURE = Picture("dog.jpg", b"picture", 4, 3)
SMAPS = """55d4c0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]
Rss:              800000 kB
Pss:              600000 kB
Pss_Dirty:        500000 kB
Shared_Clean:     290000 kB
Private_Clean:     10000 kB
Private_Dirty:    500000 kB
"""


# ---- arithmetic ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.95, 0.99, 1])
@pytest.mark.parametrize("count", [1, 2, 5, 60])
def test_percentile_is_numpys(count: int, share: float) -> None:
    values = np.random.default_rng(count).permutation(np.arange(count) ** 2.0)
    assert percentile(list(values), share) == pytest.approx(np.percentile(values, share * 100))


def test_percentile_of_four() -> None:
    assert [percentile([4, 1, 3, 2], share) for share in (0, 0.5, 1)] == [1, 2.5, 4]


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)], ids=["none", "above", "below"])
def test_percentile_refuses(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="expected at least one, and a share of 0 to 1"):
        percentile(values, share)


def test_summary_is_median_and_range() -> None:
    summary = Summary.of([3, 1, 10])
    assert summary == Summary(3, 1, 10)
    assert summary.text(scale=1000, digits=0) == "3000 (1000–10000)"
    with pytest.raises(ValueError, match="no values"):
        Summary.of([])


def test_ratios_pair_repetitions() -> None:
    assert report.ratios([1, 6], [2, 3]) == [0.5, 2]
    with pytest.raises(ValueError, match="2 repetitions against 1"):
        report.ratios([1, 2], [1])


def test_throughput_is_requests_by_seconds() -> None:
    assert Load(2.0, (0.1, 0.2, 0.3)).throughput == 1.5


def test_smaps_in_bytes() -> None:
    assert measure.parse_smaps(SMAPS) == {"rss": 819_200_000, "pss": 614_400_000, "private": 522_240_000}


def test_memory_and_processor_time_of_this_process() -> None:
    found = measure.memory(os.getpid())
    assert found["rss"] > 10e6
    assert found.get("private", 0) <= found.get("pss", found["rss"]) <= found["rss"]
    assert measure.processor_time(os.getpid()) > 0


def test_memory_without_smaps_is_rss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, encoding: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert set(measure.memory(os.getpid())) == {"rss"}


# ---- report ----------------------------------------------------------------------------------------


def a_report(**samples: list[dict[str, float]]) -> dict[str, Any]:
    """A report as ``run_benchmark`` returns it."""
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "a processor", "cores": 2, "load_before": 0.5},
        "model": {"name": "tiny", "architecture": "compact", "classes": 7, "note": ""},
        "options": {"repeats": 2, "requests": 10, "concurrency": [1], "rates": [], "warm_up": 3},
        "contenders": {name: f"the server {name}" for name in samples},
        "answers": {name: {"dog.jpg": {"label": "Samoyed", "probability": 0.9}} for name in samples},
        "samples": samples,
    }


def test_markdown_has_medians_ranges_and_ratios() -> None:
    data = a_report(
        ours=[{"start_s": 4.0, "c1_p50": 0.1}, {"start_s": 6.0, "c1_p50": 0.3}],
        stock=[{"start_s": 8.0, "c1_p50": 0.1}, {"start_s": 6.0, "c1_p50": 0.1}],
    )
    text = report.markdown(data, report.figures([1]))
    assert "| figure | ours | stock | ours / stock |\n|---|---|---|---|\n" in text
    assert "| start to READY, s | 5.00 (4.00–6.00) | 7.00 (6.00–8.00) | 0.75 (0.50–1.00) |\n" in text
    assert "| latency at concurrency 1, p50, ms | 200 (100–300) | 100 (100–100) | 2.00 (1.00–3.00) |\n" in text
    assert "PSS" not in text  # wasn't measured
    assert "- answers to dog.jpg: ours Samoyed 0.900, stock Samoyed 0.900 (the same label)" in text
    assert "- stock: the server stock" in text


def test_markdown_keeps_a_row_that_one_contender_lacks() -> None:
    data = a_report(ours=[{"start_s": 4.0, "c1_cpu": 0.02}], bare=[{"c1_cpu": 0.01}], stock=[{"start_s": 8.0}])
    text = report.markdown(data, report.figures([1]))
    assert "| start to READY, s | 4.00 (4.00–4.00) | – | 8.00 (8.00–8.00) | – | 0.50 (0.50–0.50) |\n" in text
    assert (
        "| processor time a request at concurrency 1, ms | 20.0 (20.0–20.0) | 10.0 (10.0–10.0) | – "
        "| 2.00 (2.00–2.00) | – |\n"
    ) in text


def test_markdown_tells_of_open_loops_and_untrained_weights() -> None:
    samples = [{"r2.5_answered": 0.5, "r2.5_p50": 0.1}, {"r2.5_answered": 0.0}]
    data = a_report(ours=samples, stock=samples)
    assert "open loop" not in report.markdown(data, [])
    data["options"]["rates"], data["model"]["note"] = [2.5], subject.UNTRAINED_NOTE
    text = report.markdown(data, report.figures([1], [2.5]))
    assert "in an open loop, where a latency counts from the time at which the request was due" in text
    assert "**untrained weights: the times are those of a trained model, the answers mean nothing**" in text
    assert "| answered at 2.5 requests/s, % | 25.0 (0.0–50.0) | 25.0 (0.0–50.0) | – |\n" in text  # no ratio to 0
    assert "latency at 2.5" not in text  # one repetition has none


def test_markdown_says_that_answers_differ() -> None:
    data = a_report(ours=[{}], stock=[{}])
    data["answers"]["stock"]["dog.jpg"]["label"] = "tabby"
    assert "NOT the same label" in report.markdown(data, [])


def test_json_holds_samples_and_summary() -> None:
    data = a_report(ours=[{"start_s": 4.0}, {"start_s": 6.0}], stock=[{"start_s": 8.0}, {"start_s": 6.0}])
    parsed = json.loads(json.dumps(report.as_json(data, [Figure("start_s", "start")])))
    assert parsed["samples"]["ours"] == [{"start_s": 4.0}, {"start_s": 6.0}]
    assert parsed["summary"]["start_s"] == {
        "contenders": {"ours": {"median": 5, "min": 4, "max": 6}, "stock": {"median": 7, "min": 6, "max": 8}},
        "ratios": {"stock": {"median": 0.75, "min": 0.5, "max": 1}},
    }


LOADS = {f"c{n}_{key}": n * 0.5 for n in (1, 4) for key in ("throughput", "p50", "cpu")}


@pytest.mark.slow
def test_report_is_written(tmp_path: Path) -> None:
    data = a_report(ours=[LOADS, LOADS], bare=[LOADS, LOADS], stock=[{"c1_throughput": 1.0, "c1_p50": 60.0}] * 2)
    data["options"]["concurrency"] = [4, 1]
    text = session.write_report(data, tmp_path / "out")
    written = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert written.startswith(text)
    assert json.loads((tmp_path / "out" / "benchmark.json").read_bytes())["date"] == data["date"]
    for name in ("throughput", "latency", "cpu"):
        assert f"![{name}]({name}.png)" in written
        path = tmp_path / "out" / f"{name}.png"
        assert path.stat().st_size < 200_000
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
        assert pixels.shape[1] > 600
        assert (pixels[0] == 255).all()  # white behind it
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # and something on it
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CommandError, match=r"can't be written to .*file"):
        session.write_report(data, tmp_path / "file")


def test_machine_facts_and_versions() -> None:
    facts = report.machine_facts()
    assert facts["processor"]
    assert facts["cores"] >= 1
    assert facts["memory"] > 1e8
    assert report.versions("21.0.8")["torch"] == torch.__version__.partition("+")[0]
    assert report.now().endswith("+00:00")


# ---- options ---------------------------------------------------------------------------------------


def test_defaults() -> None:
    args = benchmark.build_parser().parse_args([])
    assert (args.weights, args.picture, args.repeats, args.requests, args.out) == ("auto", [], 5, 60, None)
    assert (args.concurrency, args.rate, args.warm_up) == ((1, 2, 4), (), 20)
    assert args.contenders == (Wanted("ours"), Wanted("stock"))
    assert (args.runtime, args.precision, args.pictures, args.labels) == ("auto", "auto", [], None)


def test_contenders_by_name() -> None:
    for kind in KINDS:
        assert make_contender(Wanted(kind)).name == kind
    args = benchmark.build_parser().parse_args(["--contenders", "ours:2,ours,stock:1,bare,bare:4", "--rate", "5,0.5"])
    assert [each.name for each in args.contenders] == ["ours:2", "ours", "stock:1", "bare", "bare:4"]
    assert args.rate == (5, 0.5)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("alternatives", "bare"):
        monkeypatch.setattr(f"scripts.lib.benchmarking.{module}.usable_cores", lambda: 4)
    bare = [Bare("bare", workers) for workers in (None, 2, 3, 8)]
    assert [(each.workers, each.threads) for each in bare] == [(4, 1), (2, 2), (3, 1), (8, 1)]
    assert "2 workers of 2 threads" in Alternative("fastapi:2", "fastapi", 2).what
    assert "a thread a request" in Alternative("flask", "flask", None).what
    made = [make_contender(Wanted(*each)) for each in (("ours",), ("ours", 2), ("ours-default",), ("stock", 3))]
    assert [getattr(each, "workers", 0) for each in made] == [1, 2, None, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "1"], "expected at least 2"),
        (["--requests", "0"], "expected at least 1"),
        (["--concurrency", "1,0"], "expected at least 1"),
        (["--concurrency", "1,1"], "names a number twice"),
        (["--concurrency", "1,x"], "'x' is no whole number, expected at least 1"),
        (["--contenders", "ours"], "two or more different"),
        (["--contenders", "ours,ours"], "two or more different"),
        (["--contenders", "ours,tornado"], "unknown contender 'tornado', expected ours, stock"),
        (["--contenders", "ours,flask:2"], "flask takes no number of workers, got 'flask:2'; those that do are ours"),
        (["--contenders", "ours,stock:0"], "'stock:0': the workers must be a whole number of at least 1"),
        (["--contenders", "ours,stock:"], "'stock:': the workers must be a whole number of at least 1"),
        (["--rate", "0"], "expected requests a second above 0"),
        (["--rate", "inf"], "expected requests a second above 0"),
        (["--rate", "2,2.0"], "names a rate twice"),
        (["--warm-up", "0"], "expected at least 1"),
        (["--picture"], "expected at least one argument"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_wrong_use_exits_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.build_parser().parse_args(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_pictures(tmp_path: Path) -> None:
    generated = photographs.generated(*photographs.GENERATED_PX)
    assert generated == photographs.generated(*photographs.GENERATED_PX)
    path = tmp_path / "p.jpg"
    path.write_bytes(generated.content)
    assert session.read_picture(path) == Picture("p.jpg", generated.content, 1546, 1213)
    path.write_bytes(b"nothing")
    with pytest.raises(CommandError, match=r"--picture .*p\.jpg: not a picture; expected a JPEG"):
        session.read_picture(path)
    with pytest.raises(CommandError, match="give the path of a picture"):
        session.read_picture(tmp_path / "none.jpg")


# ---- the stock example -----------------------------------------------------------------------------


def test_stock_archive_holds_the_same_network(tiny_model: ModelFolder, tmp_path: Path) -> None:
    with zipfile.ZipFile(torchserve.stock_archive(tiny_model, tmp_path / "store")) as archive:
        archive.extractall(tmp_path)
    manifest = json.loads((tmp_path / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))["model"]
    assert manifest["handler"] == "image_classifier"
    assert (manifest["modelFile"], manifest["serializedFile"]) == ("model.py", "densenet.pth")
    labels = json.loads((tmp_path / "index_to_name.json").read_text(encoding="utf-8"))
    assert list(labels.values()) == tiny_model.labels

    spec = importlib.util.spec_from_file_location("stock_model", tmp_path / "model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # as ts.torch_handler.base_handler does it: the one class of the module, no arguments, strict
    network = module.ImageClassifier()
    network.load_state_dict(torch.load(tmp_path / "densenet.pth", map_location="cpu", weights_only=True))
    ours = load_network(tiny_model.card, tiny_model.weights, torch.device("cpu"))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(x), ours(x), rtol=1e-5, atol=1e-5)


def test_stock_refuses_fewer_classes_than_it_answers_with(tmp_path: Path) -> None:
    card = tiny_card(num_classes=4)
    model = write_model_folder(tmp_path / "model", tiny_state(card), card, ["a", "b", "c", "d"])
    with pytest.raises(CommandError, match=r"4 classes; .* answers with 5 and fails with fewer"):
        Stock("stock", 1).prepare(Subject(model, card, {}), Path("java"), tmp_path)


def test_stock_settings_are_the_defaults() -> None:
    ports = torchserve.stock_properties(7000, None)
    assert all(value.startswith("http://127.0.0.1:700") for key, value in ports.items() if "address" in key)
    assert set(torchserve.stock_properties(7000, 1)) - set(ports) == {"default_workers_per_model"}


def test_stock_environment_has_none_of_our_tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = torchserve.stock_environment(Path("java"), tmp_path)
    assert environment["JAVA_HOME"] == "java"
    assert environment["LOG_LOCATION"].startswith(str(tmp_path))
    assert "OMP_NUM_THREADS" not in environment
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert torchserve.stock_environment(Path("java"), tmp_path)["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("contender", "body"),
    [
        (Ours("ours", 1), b'{"label": "Samoyed", "index": 0, "probability": 0.75}'),
        (Stock("stock", 1), b'{"tabby": 0.25, "Samoyed": 0.75}'),
    ],
    ids=["ours", "stock"],
)
def test_answers_are_understood(contender: HttpContender, body: bytes) -> None:
    assert contender.parse(body) == Answer("Samoyed", 0.75)


def test_free_ports_are_free() -> None:
    assert 20000 <= contenders.free_ports() < 32000


# ---- the client ------------------------------------------------------------------------------------


class Fake(HttpContender):
    """A server in this process; ``status`` and ``bodies`` are what it answers with, in turn.

    ``busy``: seconds that it takes for a request, one at a time.
    """

    what = "a server in this process"

    def __init__(self, bodies: list[bytes], status: int = 200, name: str = "fake", busy: float = 0.0) -> None:
        self.name, self.bodies, self.status, self.received = name, bodies, status, 0
        self.busy, self.turn = busy, threading.Lock()
        self.running = False
        self.polls = 0

    def prepare(self, subject: Subject, java_home: Path, folder: Path) -> None:
        """Nothing to do."""

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process()]

    def request(self, picture: Picture) -> Request:
        return Request("PUT", "/", {}, picture.content)

    def start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with fake.turn:
                    time.sleep(fake.busy)
                body = fake.bodies[fake.received % len(fake.bodies)]
                fake.received += 1
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 100  # connections that wait on a busy machine

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.running = True

    def ready(self) -> tuple[int, int]:
        self.polls += 1
        return (0, 1) if self.polls < 3 else (1, 1)

    def worker_pids(self) -> list[int]:
        return [os.getpid()]

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.server.server_address[1])

    def stop(self) -> None:
        if self.running:
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()
            self.running = False


DOG = b'{"label": "Samoyed", "probability": 0.75}'


PLAN = Plan(6, (1, 2), (1000.0,), warm_up=3)


def run_fake(fake: Fake) -> measure.Sample:
    """The figures of one start of ``fake``."""
    return Client(fake, [PICTURE]).measure(PLAN)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Poll without pauses."""
    monkeypatch.setattr(measure, "POLL_SECONDS", 0.001)
    yield


def test_measure_takes_every_figure() -> None:
    fake = Fake([DOG])
    sample = run_fake(fake)
    wanted = {figure.key for figure in report.figures([1, 2], [1000])}
    assert set(sample) == wanted if sys.platform == "linux" else set(sample) <= wanted
    assert fake.received == 3 + 3 * 6
    assert not fake.running
    assert 0 < sample["c1_p50"] <= sample["c1_p95"] <= sample["c1_p99"]
    assert sample["c2_throughput"] > 0
    assert sample["r1000_answered"] == 1


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (Fake([DOG], status=503), "fake answered dog.jpg with 503, expected 200"),
        (Fake([b"[]"]), "something that isn't a classification"),
        (Fake([b"no json"]), "something that isn't a classification"),
        (Fake([DOG, DOG.replace(b"Samoyed", b"tabby")]), "doesn't always give the same answer to dog.jpg"),
        (Fake([DOG, DOG.replace(b"0.75", b"0.74")]), "doesn't always give the same answer to dog.jpg"),
    ],
    ids=["status", "list", "text", "label", "probability"],
)
def test_wrong_answers_end_the_benchmark(fake: Fake, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run_fake(fake)
    assert not fake.running


def test_answers_may_differ_in_rounding() -> None:
    run_fake(Fake([DOG, DOG.replace(b"0.75", b"0.7501")]))


def test_a_server_that_is_gone() -> None:
    fake = Fake([DOG])
    fake.start()
    fake.stop()
    with pytest.raises(CommandError, match=r"fake didn't answer dog\.jpg"):
        Client(fake, [PICTURE]).closed_loop(1, 1)


def test_start_has_a_deadline() -> None:
    fake = Fake([DOG])
    fake.polls = -(10**6)
    try:
        with pytest.raises(CommandError, match="0 of 1 workers are READY after 0 s"):
            measure.start_timed(fake, timeout=0.02)
    finally:
        fake.stop()


@pytest.fixture
def slow() -> Iterator[Client]:
    """A client of a server that takes 20 ms for each request, one after the other."""
    fake = Fake([DOG], busy=0.02)
    fake.start()
    yield Client(fake, [PICTURE])
    fake.stop()


def test_an_open_loop_counts_from_the_time_that_a_request_was_due(slow: Client) -> None:
    """At five times what the server can do each request waits for all before it; a closed loop wouldn't notice."""
    load = slow.open_loop(20, rate=250)
    assert load.answered == 1
    assert max(load.latencies) > 20 * 0.02 - 20 / 250  # the last one: all that were served but its own due time
    assert percentile(load.latencies, 0.5) > min(load.latencies) + 0.1


def test_an_open_loop_waits_between_requests(slow: Client) -> None:
    start = time.perf_counter()
    assert slow.open_loop(5, rate=20).sent == 5
    assert time.perf_counter() - start > 4 / 20


def test_an_open_loop_counts_what_is_not_answered() -> None:
    fake = Fake([DOG], status=503)
    fake.start()
    try:
        client = Client(fake, [PICTURE])
        assert client.open_loop(4, rate=1000) == OpenLoad(4, ())
    finally:
        fake.stop()
    assert client.open_loop(4, rate=1000).answered == 0  # nobody listens
    assert measure.open_figures("r1", OpenLoad(4, ())) == {"r1_answered": 0}
    assert measure.open_figures("r1", OpenLoad(4, (0.5,)))["r1_answered"] == 0.25


def test_a_connection_that_the_server_closed_is_made_again(slow: Client) -> None:
    connection = slow.connect()
    slow.send(connection, 0)
    first = connection.sock
    first.shutdown(socket.SHUT_RDWR)
    slow.send(connection, 1)
    assert connection.sock is not first
    connection.close()


def test_processor_time_of_a_family_holds_what_has_ended() -> None:
    before = measure.family_time([psutil.Process()])
    subprocess.run([sys.executable, "-c", "for i in range(3_000_000): pass"], check=True)
    assert measure.family_time([psutil.Process()]) - before > 0.02


# ---- the bare loop ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bare_loop_answers_as_the_network_does(tiny_model: ModelFolder, tmp_path: Path) -> None:
    picture = photographs.generated(*photographs.GENERATED_PX)
    bare = Bare("bare:2", 2)
    bare.prepare(subject.trained(tiny_model, precision.Wanted("torch", "float32")), Path("java"), tmp_path)
    assert "2 processes of" in bare.what
    assert "torch float32" in bare.what
    probe = LoopProbe(bare, [picture])
    sample = probe.measure(Plan(6, (1, 4), (5.0,), warm_up=2))
    assert not bare.processes()
    assert sample["c1_throughput"] == sample["c4_throughput"] > 0
    assert sample["c1_p50"] > 0
    assert {"rss", "c1_cpu"} <= set(sample)
    assert not {"start_s", "r5_answered"} & set(sample)
    network = load_network(tiny_model.card, tiny_model.weights, torch.device("cpu"))
    preprocessing = Preprocessing.of(tiny_model.card)
    with torch.inference_mode():
        seen = preprocessing.to_tensor(preprocessing.read(picture.content, 10**7)[None])
        best = network(seen).softmax(1)[0].max(0)
    answer = probe.answers[picture.name]
    assert answer.label == tiny_model.labels[int(best.indices)]
    assert answer.probability == pytest.approx(float(best.values), abs=1e-4)


@pytest.mark.slow
def test_the_bare_loop_tells_why_it_fails(tiny_model: ModelFolder, tmp_path: Path) -> None:
    bare = Bare("bare:1", 1)
    bare.prepare(Subject(tiny_model, tiny_model.card, {}), Path("java"), tmp_path)
    with pytest.raises(CommandError, match=r"bare:1: a process of the loop failed: .*InvalidImage"):
        LoopProbe(bare, [PICTURE]).measure(Plan(2, (1,), (), warm_up=1))
    assert not bare.processes()


# ---- the model -------------------------------------------------------------------------------------


def test_untrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "densenet121", TINY)
    state = torch.get_rng_state()
    found = subject.untrained("densenet121", tmp_path / "a", precision.Wanted("torch"))
    assert torch.equal(state, torch.get_rng_state())
    assert found.model.labels[207] == "golden retriever"
    assert (found.card.num_classes, found.card.runtime, found.card.crop) == (1000, "torch", 224)
    assert found.card.precision == ("bfloat16" if has_bfloat16(torch.device("cpu")) else "float32")
    assert found.settings == f"torch {found.card.precision}"
    assert found.note == subject.UNTRAINED_NOTE
    again = subject.untrained("densenet121", tmp_path / "b", precision.Wanted("torch", "float32"))
    assert again.card.weights_sha256 == found.card.weights_sha256
    assert again.card.precision == "float32"


def test_untrained_weights_without_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "densenet121", TINY)
    monkeypatch.setattr(precision, "has_openvino", lambda: False)
    assert subject.untrained("densenet121", tmp_path, precision.Wanted(precision="float32")).card.runtime == "torch"
    with pytest.raises(CommandError, match="OpenVINO isn't installed; install it with pip, or choose --runtime torch"):
        subject.untrained("densenet121", tmp_path, precision.Wanted("openvino"))


def test_untrained_weights_take_no_labelled_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    args = benchmark.build_parser().parse_args(["--weights", "untrained", "--calibration", str(tmp_path)])
    with pytest.raises(CommandError, match="no accuracy to lose: leave them out"):
        benchmark._subject(args, tmp_path)


# ---- the alternatives ------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


APP = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"].startswith("multipart/form-data") and b"picture" in body
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"label": "Samoyed", "probability": 0.75}).encode())
server = HTTPServer(("127.0.0.1", int(os.environ["BENCHMARK_PORT"])), Handler)
assert Path(os.environ["BENCHMARK_MODEL"], "card.json").is_file()
assert os.environ["PYTHONPATH"].split(os.pathsep)[0].endswith("packages")
Path(os.environ["BENCHMARK_LOADED"], str(os.getpid())).touch()
server.serve_forever()
"""


def alternative(monkeypatch: pytest.MonkeyPatch, model: ModelFolder, program: str) -> Alternative:
    """A contender whose program is ``program``, its packages installed."""
    app = alternatives._App("a program", lambda port, workers: ("-c", program))
    monkeypatch.setattr(alternatives, "APPS", {"fastapi": app})
    monkeypatch.setattr(alternatives, "optional_packages", lambda *_: Path("packages"))
    made = Alternative("fastapi:1", "fastapi", 1)
    made.prepare(Subject(model, model.card, {}), Path("java"), Path("folder"))
    return made


def test_an_alternative_is_started_asked_and_stopped(monkeypatch: pytest.MonkeyPatch, tiny_model: ModelFolder) -> None:
    made = alternative(monkeypatch, tiny_model, APP)
    probe = session.probe_of(made, [PICTURE])
    probe.rehearse()
    sample = probe.measure(Plan(3, (1,), (100.0,), warm_up=1))
    assert probe.answers == {"dog.jpg": Answer("Samoyed", 0.75)}
    assert sample["start_s"] > 0
    assert sample["c1_throughput"] > 0
    assert made.processes() == []


def test_an_alternative_that_dies_says_why(monkeypatch: pytest.MonkeyPatch, tiny_model: ModelFolder) -> None:
    made = alternative(monkeypatch, tiny_model, "raise SystemExit('no such module')")
    with pytest.raises(CommandError, match="fastapi:1: it died at its start: no such module"):
        session.probe_of(made, [PICTURE]).rehearse()
    assert made.processes() == []


# ---- from options to report ------------------------------------------------------------------------


def test_nothing_measures_what_is_neither_server_nor_loop() -> None:
    class Other(Contender):
        name = what = "other"

        def prepare(self, subject: Subject, java_home: Path, folder: Path) -> None:
            """Nothing to do."""

        def processes(self) -> list[psutil.Process]:
            return []

        def stop(self) -> None:
            """Nothing to do."""

    with pytest.raises(TypeError, match="nothing measures a Other"):
        session.probe_of(Other(), [])


def test_the_whole_benchmark(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {name: Fake([DOG], name=name) for name in ("one", "two")}
    monkeypatch.setattr(session, "make_contender", lambda wanted: fakes[wanted.name])
    monkeypatch.setattr(session, "java_version", lambda home: "21")
    data = session.run_benchmark(
        Subject(tiny_model, tiny_model.card, {}),
        [Wanted("one"), Wanted("two")],
        [PICTURE],
        Plan(3, (1,), (500.0,), warm_up=2),
        2,
        Path("java"),
    )
    assert data["pictures"] == [{"name": "dog.jpg", "bytes": 7, "width": 4, "height": 3}]
    assert data["options"] == {"repeats": 2, "requests": 3, "concurrency": [1], "rates": [500], "warm_up": 2}
    assert [len(each) for each in data["samples"].values()] == [2, 2]
    text = session.write_report(data, None)
    assert "requests/s at concurrency 1" in text
    assert "answered at 500 requests/s" in text
    assert "start to READY" in text
