"""Metrics, alerts and dashboard: the real Prometheus scrapes the real server under a mixed load."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from scripts.lib.paths import CONFIG, ROOT
from scripts.lib.server import find_server
from tests.deployment.draw_dashboard import draw
from tests.support.machine.programs import program
from tests.support.machine.waiting import repeating, wait_until
from tests.support.pictures.golden import PACKAGED
from tests.support.servers.front_door import FrontDoor, front_door
from tests.support.servers.prometheus import (
    ALERTS,
    DASHBOARD,
    PROMETHEUS_CONFIG,
    TIMEOUT_S,
    Prometheus,
    panels,
    scraping,
    selectors,
)
from tests.support.servers.running import Running, serving

RULES = [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
ALERT_TESTS = Path(__file__).with_name("alerts.test.yml")
QUEUE = 100
"""jobQueueSize of config/model-config.yaml."""
WARM_UP = 2 * 10
"""serve.py's own pictures."""
NO_SERIES = {
    "GPUUtilization": "only where there is a GPU",
    "GPUMemoryUtilization": "only where there is a GPU",
    "ALERTS": "only while an alert fires",
}


# --- files ------------------------------------------------------------------------------------------


def promtool(*arguments: str) -> str:
    """The output of promtool, which must be content."""
    result = subprocess.run(
        [program("promtool", package="prometheus"), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_promtool_accepts_configuration_and_alerts() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "config", str(PROMETHEUS_CONFIG))


def test_each_alert_fires_when_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(ALERT_TESTS))
    tested = ALERT_TESTS.read_text(encoding="utf-8")
    assert all(rule["alert"] in tested for rule in RULES)


def test_an_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    documented = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert all(f"`{rule['alert']}`" in documented for rule in RULES)


def test_every_metric_is_documented() -> None:
    documented = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    config = yaml.safe_load((CONFIG / "metrics.yaml").read_text(encoding="utf-8"))
    names = [m["name"] for kinds in config.values() for metrics in kinds.values() for m in metrics]
    assert [name for name in names if f"`{name}`" not in documented] == []


def test_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    listed = dashboard["panels"]
    assert len({panel["id"] for panel in listed}) == len(listed)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    taken: set[tuple[int, int]] = set()
    for panel in listed:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} overlaps"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
            chosen = ('instance=~"$instance"', "ALERTS", 'job="front-door"')
            assert all(any(part in target["expr"] for part in chosen) for target in panel["targets"])


def test_grafana_is_provisioned_with_the_prometheus_of_the_dashboard() -> None:
    provisioning = CONFIG / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "densenet.yml").read_text())["providers"]
    scrape = yaml.safe_load(PROMETHEUS_CONFIG.read_text(encoding="utf-8"))["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scrape)
    assert provider["type"] == "file"


# --- a server under load ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers with the bundled model."""
    with serving(tmp_path_factory.mktemp("store"), "--workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def door(server: Running) -> Iterator[FrontDoor]:
    """A front door before it, and a host that is gone."""
    with front_door(f"127.0.0.1:{server.port}", "127.0.0.1:9") as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(server: Running, door: FrontDoor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes both."""
    with scraping(server.port + 2, door.metrics_port, tmp_path_factory.mktemp("prometheus")) as running:
        yield running


@pytest.fixture(scope="module")
def answers(server: Running, prometheus: Prometheus) -> Counter[int]:
    """The statuses that a mixed load got: good pictures, broken ones, and more at once than the queue holds."""
    good = [golden.path.read_bytes() for golden in PACKAGED]

    def send(picture: bytes) -> int:
        headers = {"X-Request-Start": f"t={time.time():.3f}"}  # the front door's
        return requests.put(server.predictions, data=picture, headers=headers, timeout=TIMEOUT_S).status_code

    mixed = [picture for _ in range(20) for picture in (*good, b"no picture")]
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(8) as pool:
        statuses.update(pool.map(send, mixed[: len(mixed) // 2]))
    for times in range(2, 8):  # on a busy machine this client may be too slow for the queue to fill
        with ThreadPoolExecutor(times * QUEUE) as pool:
            statuses.update(pool.map(send, [good[1]] * times * QUEUE))
        if statuses[503]:
            break
    with ThreadPoolExecutor(8) as pool:
        statuses.update(pool.map(send, mixed[len(mixed) // 2 :]))
    assert statuses[400] == 20
    assert statuses[503] > 0
    wait_until(lambda: prometheus.value('densenet_requests_total{code="400"}') == statuses[400], 120)
    wait_until(lambda: prometheus.value("densenet_predictions_total") >= statuses[200] + WARM_UP, 120)
    return statuses


def test_prometheus_counts_what_was_answered(answers: Counter[int], server: Running, prometheus: Prometheus) -> None:
    def value(expression: str) -> int:
        return round(prometheus.value(expression))

    card = 1  # serve.py compares what is served with what was meant
    assert value('densenet_requests_total{outcome="answered"}') == answers[200] + WARM_UP + card
    assert value('densenet_requests_total{code="400", outcome="InvalidImage"}') == 20
    assert value("densenet_predictions_total") == answers[200] + WARM_UP
    assert value("densenet_top_uncertainty_count") == answers[200] + WARM_UP
    assert value("ts_inference_requests_total") == answers.total() + WARM_UP
    assert value("Requests5XX") == answers[503]
    assert value("Requests4XX") == 20
    assert value('densenet_stage_seconds_count{stage="decode"}') == answers[200] + answers[400] + WARM_UP + card
    assert value('densenet_stage_seconds_count{stage="inference"}') == answers[200] + WARM_UP
    assert value('densenet_stage_seconds_count{stage="total"}') == answers[200] + answers[400]
    whole = prometheus.value('densenet_stage_seconds_sum{stage="total"}')
    parts = [prometheus.value(f'densenet_stage_seconds_sum{{stage="{s}"}}') for s in ("queue", "decode", "inference")]
    assert 0 < sum(parts) < whole * 1.2 + 2  # decode and inference count the warm-up, too
    assert value("count(changes(densenet_worker_uptime_seconds[30s]) > 0)") == 2
    memory = {worker.pid: psutil.Process(worker.pid).memory_info().rss for worker in _workers(server)}
    assert prometheus.value("densenet_worker_memory_bytes") == pytest.approx(sum(memory.values()), rel=0.2)


def test_every_query_of_the_dashboard_finds_series(answers: Counter[int], prometheus: Prometheus) -> None:
    assert answers
    queries = [(panel.title, query) for panel in panels() for query, _ in panel.queries]
    assert len(queries) > 30
    empty = [(title, query) for title, query in queries if not prometheus.query(query)]
    assert [(title, query) for title, query in empty if query.split("{")[0] not in NO_SERIES] == []


def test_every_alert_reads_series_that_exist(answers: Counter[int], prometheus: Prometheus) -> None:
    assert answers
    for rule in RULES:
        read = selectors(rule["expr"])
        assert read
        assert [selector for selector in read if not prometheus.query(selector)] == [], rule["alert"]


def test_the_autoscalers_series_fall_when_the_load_falls(answers: Counter[int], prometheus: Prometheus) -> None:
    def has_fallen(expression: str) -> bool:
        return prometheus.value(expression) == 0

    assert answers
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    documented = re.findall(r"^    (sum by \(pod\).*)$", text, re.MULTILINE)
    assert len(documented) == 3
    for expression in documented:
        now = expression.replace("[2m]", "[10s]")
        wait_until(partial(has_fallen, now), 60)
        peak = max(v for s in prometheus.query_range(now, time.time() - 300, time.time(), 2) for _, v in s.points)
        assert peak > 0


def test_the_queries_of_the_dashboard_can_be_drawn(
    answers: Counter[int], prometheus: Prometheus, tmp_path: Path
) -> None:
    assert answers
    draw(prometheus, tmp_path / "dashboard.png", seconds=120, rate_interval="10s")
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")


def test_the_front_door_is_watched(prometheus: Prometheus, door: FrontDoor) -> None:
    wait_until(lambda: prometheus.value("densenet_front_door_reaches_server") == 1, 60)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
        wait_until(lambda: prometheus.value("densenet_front_door_connections") > 20, 60)
    for path in ("", "ping", "predictions/densenet", "metrics/x", "host"):
        assert requests.get(f"http://127.0.0.1:{door.metrics_port}/{path}", timeout=TIMEOUT_S).status_code == 404
    assert requests.get(f"{door.url}/metrics", timeout=TIMEOUT_S).status_code == 404
    assert "DensenetFrontDoorAlone" not in prometheus.firing()
    with front_door("127.0.0.1:9") as alone:
        metrics = requests.get(f"http://127.0.0.1:{alone.metrics_port}/metrics", timeout=TIMEOUT_S)
        assert (metrics.status_code, metrics.headers["content-type"]) == (200, "text/plain; version=0.0.4")
        assert "densenet_front_door_reaches_server 0\n" in metrics.text


def test_nothing_is_logged_for_each_request(answers: Counter[int], server: Running) -> None:
    """Metrics pass through the workers' output, and must leave no trace there."""
    found = find_server(server.port)
    assert found
    logs = {path.name: path.read_text(errors="replace") for path in found.folder.rglob("*.log")}
    assert set(logs) == {"server.log", "output.log", "access_log.log"}
    assert logs["access_log.log"].count("/predictions/densenet") >= answers[200]
    assert "[METRICS]" not in "".join(logs.values())


def _workers(server: Running) -> list[psutil.Process]:
    found = find_server(server.port)
    assert found
    return [psutil.Process(worker.pid) for worker in found.management.status().workers if worker.pid > 0]


def test_killed_workers_raise_the_alarm_and_end_it_when_they_are_back(
    answers: Counter[int], server: Running, prometheus: Prometheus
) -> None:
    assert answers
    wait_until(lambda: "DensenetNoReadyWorker" not in prometheus.firing(), 60)
    found = find_server(server.port)
    assert found
    java = found.process()
    assert java

    def kill() -> None:
        for child in java.children(recursive=True):
            try:
                if "model_service_worker.py" in " ".join(child.cmdline()):
                    child.kill()
            except psutil.NoSuchProcess:
                pass

    with repeating(kill, pause=0.2):
        wait_until(lambda: "DensenetNoReadyWorker" in prometheus.firing(), 120)
    wait_until(lambda: "DensenetNoReadyWorker" not in prometheus.firing(), 240)
    wait_until(lambda: found.management.status().ready == 2, 120)
    for worker in _workers(server):
        worker.kill()
    wait_until(lambda: "DensenetWorkerRestarts" in prometheus.firing(), 120)
