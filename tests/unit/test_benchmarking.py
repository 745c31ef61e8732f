"""The benchmark's arithmetic, report, options and stock archive; the client against a small server in this process."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handler.network import load_network
from scripts import benchmark
from scripts.lib.benchmarking import contenders, measure, report, session
from scripts.lib.benchmarking.contenders import CONTENDERS, Answer, Contender, Ours, Stock
from scripts.lib.benchmarking.measure import Client, Load, Picture, percentile
from scripts.lib.benchmarking.report import Figure, Summary
from scripts.lib.console import CommandError
from scripts.lib.model_folder import ModelFolder, write_model_folder
from tests.unit.conftest import tiny_card, tiny_state

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
        "model": {"name": "tiny", "architecture": "compact", "classes": 7},
        "options": {"repeats": 2, "requests": 10, "concurrency": [1]},
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


def test_report_is_written(tmp_path: Path) -> None:
    data = a_report(ours=[{"start_s": 4.0}], stock=[{"start_s": 8.0}])
    text = session.write_report(data, tmp_path / "out")
    assert (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8") == text
    assert json.loads((tmp_path / "out" / "benchmark.json").read_bytes())["date"] == data["date"]
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
    assert (args.concurrency, args.contenders) == ((1, 2, 4), ("ours", "stock"))


def test_contenders_of_command_and_harness_are_the_same() -> None:
    assert tuple(CONTENDERS) == benchmark.CONTENDERS
    made = [CONTENDERS[name](name) for name in CONTENDERS]
    assert [c.name for c in made] == list(CONTENDERS)
    assert [c.what for c in made if "1 worker" in c.what] == [made[0].what, made[1].what]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "1"], "expected at least 2"),
        (["--requests", "0"], "expected at least 1"),
        (["--concurrency", "1,0"], "expected at least 1"),
        (["--concurrency", "1,1"], "names a number twice"),
        (["--concurrency", "1,x"], "invalid"),
        (["--contenders", "ours"], "two or more different"),
        (["--contenders", "ours,ours"], "two or more different"),
        (["--contenders", "ours,flask"], "unknown contender 'flask', expected ours, stock"),
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
    generated = session.generated_picture()
    assert generated == session.generated_picture()
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
    with zipfile.ZipFile(contenders.stock_archive(tiny_model, tmp_path / "store")) as archive:
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
        Stock("stock", 1).prepare(model, Path("java"), tmp_path)


def test_stock_settings_are_the_defaults() -> None:
    ports = contenders.stock_properties(7000, None)
    assert all(value.startswith("http://127.0.0.1:700") for key, value in ports.items() if "address" in key)
    assert set(contenders.stock_properties(7000, 1)) - set(ports) == {"default_workers_per_model"}


def test_stock_environment_has_none_of_our_tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = contenders.stock_environment(Path("java"), tmp_path)
    assert environment["JAVA_HOME"] == "java"
    assert environment["LOG_LOCATION"].startswith(str(tmp_path))
    assert "OMP_NUM_THREADS" not in environment
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert contenders.stock_environment(Path("java"), tmp_path)["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("contender", "body"),
    [
        (Ours("ours", 1), b'{"label": "Samoyed", "index": 0, "probability": 0.75}'),
        (Stock("stock", 1), b'{"tabby": 0.25, "Samoyed": 0.75}'),
    ],
    ids=["ours", "stock"],
)
def test_answers_are_understood(contender: Contender, body: bytes) -> None:
    assert contender.parse(body) == Answer("Samoyed", 0.75)


def test_free_ports_are_free() -> None:
    assert 20000 <= contenders.free_ports() < 32000


# ---- the client ------------------------------------------------------------------------------------


class Fake(Contender):
    """A server in this process; ``status`` and ``bodies`` are what it answers with, in turn."""

    what = "a server in this process"

    def __init__(self, bodies: list[bytes], status: int = 200, name: str = "fake") -> None:
        self.name, self.bodies, self.status, self.received = name, bodies, status, 0
        self.running = False
        self.polls = 0

    def prepare(self, model: ModelFolder, java_home: Path, folder: Path) -> None:
        """Nothing to do."""

    def start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                body = fake.bodies[fake.received % len(fake.bodies)]
                fake.received += 1
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.running = True

    def ready(self) -> tuple[int, int]:
        self.polls += 1
        return (0, 1) if self.polls < 3 else (1, 1)

    def worker_pids(self) -> list[int]:
        return [os.getpid()]

    @property
    def address(self) -> tuple[str, int, str]:
        return "127.0.0.1", int(self.server.server_address[1]), "/"

    def parse(self, body: bytes) -> Answer:
        data = json.loads(body)
        return Answer(data["label"], data["probability"])

    def stop(self) -> None:
        if self.running:
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()
            self.running = False


DOG = b'{"label": "Samoyed", "probability": 0.75}'


def run_fake(fake: Fake, requests: int = 6, concurrencies: tuple[int, ...] = (1, 2)) -> measure.Sample:
    """The figures of one start of ``fake``."""
    return measure.measure(Client(fake, [PICTURE]), requests, concurrencies)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Poll without pauses."""
    monkeypatch.setattr(measure, "POLL_SECONDS", 0.001)
    yield


def test_measure_takes_every_figure() -> None:
    fake = Fake([DOG])
    sample = run_fake(fake)
    wanted = {figure.key for figure in report.figures([1, 2])}
    assert set(sample) == wanted if sys.platform == "linux" else set(sample) <= wanted
    assert fake.received == measure.WARM_UP_REQUESTS + 12
    assert not fake.running
    assert 0 < sample["c1_p50"] <= sample["c1_p95"] <= sample["c1_p99"]
    assert sample["c2_throughput"] > 0


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


def test_the_whole_benchmark(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {name: Fake([DOG], name=name) for name in ("one", "two")}
    monkeypatch.setattr(session, "CONTENDERS", {name: lambda name: fakes[name] for name in fakes})
    monkeypatch.setattr(session, "java_version", lambda home: "21")
    data = session.run_benchmark(tiny_model, ["one", "two"], [PICTURE], 2, 3, [1], Path("java"))
    assert data["pictures"] == [{"name": "dog.jpg", "bytes": 7, "width": 4, "height": 3}]
    assert [len(each) for each in data["samples"].values()] == [2, 2]
    text = session.write_report(data, None)
    assert "requests/s at concurrency 1" in text
    assert "start to READY" in text
