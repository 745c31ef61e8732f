"""What a worker reports, read from the lines that TorchServe's own metrics print."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import ts
import yaml

from handler import metrics
from handler.densenet_handler import DenseNetHandler
from handler.errors import RequestError
from handler.hold import HEADER, PREFIX
from handler.metrics import WorkerMetrics, label_value, seconds_since_start, worker_number
from handler.topk import Prediction
from scripts.lib.model_folder import ModelFolder
from scripts.lib.server import METRICS_CONFIG
from tests.support.pictures.made import base64_of, jpeg
from tests.support.servers.worker import LABELS, Request, config_of, serve, start, torchserve_metrics

_LINE = re.compile(r"\[METRICS\](\w+)\.\w+:([0-9.e-]+)\|#([^|]*)\|#type:(\w+)\|")
TORCHSERVES = Path(ts.__file__).parent / "configs" / "metrics.yaml"
PICTURE = Request({"body": bytearray(jpeg())}, {})
BROKEN = Request({"body": b"no picture"}, {})


def reported(
    log: pytest.LogCaptureFixture, name: str, thread: str = threading.main_thread().name
) -> dict[str, list[float]]:
    """What a thread reported of a metric, by its labels but for the version: ``{"200 answered": [1.0]}``.

    The threads of other tests' handlers go on reporting.
    """
    values: dict[str, list[float]] = {}
    for record in (record for record in log.records if record.threadName == thread):
        match = _LINE.match(record.getMessage())
        if match and match[1] == name:
            labels = dict(pair.split(":") for pair in match[3].split(","))
            assert labels.pop("model_version") == "1.0"
            values.setdefault(" ".join(labels.values()), []).append(float(match[2]))
    return values


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, tiny_handler: DenseNetHandler) -> pytest.LogCaptureFixture:
    """The log, with nothing counted before it."""
    tiny_handler.metrics.report()
    caplog.set_level(logging.INFO)
    caplog.clear()
    return caplog


def test_requests_are_counted_by_status_and_outcome(
    tiny_handler: DenseNetHandler, log: pytest.LogCaptureFixture
) -> None:
    describe = Request({}, {"describe": "True"})
    explain = Request({"body": jpeg()}, {"explain": "True"})
    serve(tiny_handler, [PICTURE, BROKEN, describe, explain])
    serve(tiny_handler, [BROKEN])
    tiny_handler.metrics.report()
    assert reported(log, "densenet_requests_total") == {
        "200 answered": [3],
        "400 InvalidImage": [2],
    }


def test_predictions_are_counted_by_class(tiny_handler: DenseNetHandler, log: pytest.LogCaptureFixture) -> None:
    instances = {"instances": [{"b64": base64_of(jpeg(seed))} for seed in range(4)]}
    (answer,) = serve(tiny_handler, [Request({"body": instances}, {"content-type": "application/json"})])
    tiny_handler.metrics.report()
    expected = Counter(f"{p['index']} {p['label']}" for p in answer.json["predictions"])
    assert reported(log, "densenet_predictions_total") == {labels: [n] for labels, n in expected.items()}
    (uncertainty,) = reported(log, "densenet_top_uncertainty")[""]
    assert uncertainty == pytest.approx(1 - answer.json["predictions"][0]["probability"], abs=1e-6)


def test_a_batch_is_one_observation_a_stage(tiny_handler: DenseNetHandler, log: pytest.LogCaptureFixture) -> None:
    start_ = time.perf_counter()
    serve(tiny_handler, [PICTURE, PICTURE, BROKEN])
    took = time.perf_counter() - start_
    assert not log.records  # no line while a request waits, not even TorchServe's own
    tiny_handler.metrics.report()
    stages = reported(log, "densenet_stage_seconds")
    assert {stage: len(seconds) for stage, seconds in stages.items()} == {"decode": 1, "inference": 1}
    assert 0 < stages["decode"][0] + stages["inference"][0] < took
    log.clear()
    serve(tiny_handler, [BROKEN])
    tiny_handler.metrics.report()
    assert set(reported(log, "densenet_stage_seconds")) == {"decode"}
    assert reported(log, "densenet_top_uncertainty") == {}


def test_an_explanation_is_a_stage_of_its_own(tiny_handler: DenseNetHandler, log: pytest.LogCaptureFixture) -> None:
    (answer,) = serve(tiny_handler, [Request({"body": jpeg()}, {"explain": "True"})])
    assert answer.status == 200
    tiny_handler.metrics.report()
    stages = reported(log, "densenet_stage_seconds")
    assert {stage: len(seconds) for stage, seconds in stages.items()} == {"decode": 1, "explanation": 1}


def test_the_front_doors_time_makes_queue_and_total(
    tiny_handler: DenseNetHandler, log: pytest.LogCaptureFixture
) -> None:
    sent = time.time() - 2
    serve(tiny_handler, [Request(PICTURE.row, {"X-Request-Start": f"t={sent:.3f}"})])
    tiny_handler.metrics.report()
    stages = reported(log, "densenet_stage_seconds")
    (queue,), (total,) = stages["queue"], stages["total"]
    assert 1.99 < queue < total
    assert total - queue >= stages["decode"][0] + stages["inference"][0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("t=1700000000.123", 99.877),
        ("1700000000", 100.0),
        ("t=1700000100.001", None),
        ("t=1600000000.0", None),
        ("1700000000123", None),
        ("t=now", None),
        ("", None),
    ],
    ids=["nginx", "plain", "future", "long-ago", "milliseconds", "words", "empty"],
)
def test_start_of_a_request(value: str, seconds: float | None) -> None:
    result = seconds_since_start({"x-request-start": value}, 1_700_000_100.0)
    assert result == (None if seconds is None else pytest.approx(seconds))
    assert seconds_since_start({}, 1_700_000_100.0) is None


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("broken"), "503"), (MemoryError(), "507")])
def test_a_failing_handler_is_counted_as_torchserve_answers(
    tiny_model: ModelFolder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
) -> None:
    def fail(_data: object) -> None:
        raise error

    failing = start(tiny_model.path, config_of(tiny_model))
    monkeypatch.setattr(failing.runtime, "logits", fail)
    caplog.set_level(logging.INFO)
    caplog.clear()
    with pytest.raises(type(error)):
        serve(failing, [PICTURE, PICTURE])
    failing.metrics.report()
    assert reported(caplog, "densenet_requests_total") == {f"{code} InternalServerException": [2]}


def test_scales_own_requests_are_not_counted(
    tiny_handler: DenseNetHandler,
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("handler.hold.MAX_HOLD_S", 0.0)
    folder = tmp_path / (PREFIX + "0" * 32)
    folder.mkdir()
    (held,) = serve(tiny_handler, [Request({}, {HEADER: folder.name})])
    tiny_handler.metrics.report()
    assert held.status == 400
    assert reported(log, "densenet_requests_total") == {}
    serve(tiny_handler, [BROKEN])
    tiny_handler.metrics.report()
    assert reported(log, "densenet_requests_total") == {"400 InvalidImage": [1]}


def test_a_worker_goes_on_reporting_that_it_lives(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REPORT_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    WorkerMetrics(torchserve_metrics(), "1.0", "9009").ready()
    (first,) = reported(caplog, "densenet_worker_uptime_seconds")["9009"]
    assert first < 5
    deadline = time.monotonic() + 30
    while len(reported(caplog, "densenet_worker_uptime_seconds", "metrics").get("9009", [])) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    uptimes = [first, *reported(caplog, "densenet_worker_uptime_seconds", "metrics")["9009"]]
    assert uptimes == sorted(set(uptimes))


def test_a_worker_reports_its_start_and_begins_at_zero(
    tiny_model: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start(tiny_model.path, config_of(tiny_model)).metrics.report()
    assert reported(caplog, "densenet_worker_starts_total") == {"0": [1]}
    assert 50e6 < reported(caplog, "densenet_worker_memory_bytes")["0"][0] < 50e9
    zeros = reported(caplog, "densenet_requests_total")
    assert {"200 answered", "503 InternalServerException", "400 InvalidImage", "413 ImageTooLarge"} <= set(zeros)
    assert len(zeros) == len(RequestError.__subclasses__()) + 2
    assert all(values == [0] for values in zeros.values())
    for warm_up in ("densenet_stage_seconds", "densenet_top_uncertainty", "densenet_predictions_total"):
        assert reported(caplog, warm_up) == {}


def test_a_worker_that_can_not_start_reports_that_it_tried(
    tiny_model: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(Exception, match="has no section 'handler:'"):
        start(tiny_model.path, {})
    assert reported(caplog, "densenet_worker_starts_total") == {"0": [1]}
    assert reported(caplog, "densenet_worker_uptime_seconds") == {}


def test_metrics_yaml_holds_what_the_handler_reports(tiny_model: ModelFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded = start(tiny_model.path, config_of(tiny_model))
    serve(loaded, [PICTURE])
    loaded.metrics.report()
    lines = [match for record in caplog.records if (match := _LINE.match(record.getMessage()))]
    model_metrics = yaml.safe_load(METRICS_CONFIG.read_text(encoding="utf-8"))["model_metrics"]
    listed = {(kind.upper(), metric["name"]) for kind, specs in model_metrics.items() for metric in specs}
    assert {(line[4], line[1]) for line in lines} == listed
    assert "Failed to update metric" not in caplog.text


def test_what_torchserves_own_configuration_lacks_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    worker = WorkerMetrics(torchserve_metrics(TORCHSERVES), "1.0", "9000")
    worker.started()
    worker.started()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "densenet_worker_starts_total isn't reported: TorchServe's metrics_config isn't config/metrics.yaml"
    ]


def test_torchserves_own_times_are_reported_where_they_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    unlisted, listed = torchserve_metrics(), torchserve_metrics(TORCHSERVES)
    for cache in (unlisted, listed):
        WorkerMetrics(cache, "1.0", "9000")
        cache.add_time("HandlerTime", 1.0)
    assert caplog.text.count("[METRICS]HandlerTime") == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("neither cat nor dog", "neither cat nor dog"),
        ("hook, claw", "hook claw"),
        ("a:b|c\nd", "a b c d"),
        ("Bächli", "Bächli"),
        (" :", "-"),
    ],
)
def test_labels_hold_no_separator(text: str, value: str) -> None:
    assert label_value(text) == value


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (["worker.py", "--sock-type", "unix", "--sock-name", "/tmp/.ts.sock.9000", "--metrics-config", "m"], "9000"),
        (["worker.py", "--sock-type", "tcp", "--port", "9001"], "9001"),
        (["pytest", "-q"], "0"),
    ],
    ids=["unix", "windows", "no-worker"],
)
def test_number_of_the_worker(arguments: list[str], number: str) -> None:
    assert worker_number(arguments) == number


def test_two_classes_of_one_name_stay_apart(tiny_handler: DenseNetHandler, log: pytest.LogCaptureFixture) -> None:
    cranes = [[Prediction(LABELS[index], index, 0.5)] for index in (2, 3, 3)]
    tiny_handler.metrics.observe_predictions(cranes)
    tiny_handler.metrics.report()
    assert reported(log, "densenet_predictions_total") == {"2 crane": [1], "3 crane": [2]}
