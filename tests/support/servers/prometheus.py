"""A real Prometheus that scrapes a server under test, and the queries of the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from scripts.lib.paths import CONFIG
from tests.support.machine.ports import free_ports
from tests.support.machine.programs import program, running
from tests.support.machine.waiting import wait_until

PROMETHEUS_CONFIG = CONFIG / "prometheus" / "prometheus.yml"
ALERTS = CONFIG / "prometheus" / "alerts.yml"
DASHBOARD = CONFIG / "grafana" / "dashboards" / "densenet.json"
TIMEOUT_S = 30
SCRAPE_SECONDS = 2


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels and its (time, value) pairs, one for an instant query."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus under test."""

    url: str

    def query(self, expression: str, at: float | None = None) -> list[Series]:
        """The value of an expression now, or ``at`` a time (seconds since 1970)."""
        when = {} if at is None else {"time": at}
        result = self._get("query", query=expression, **when)["result"]
        return [Series(s["metric"], [(float(s["value"][0]), float(s["value"][1]))]) for s in result]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """The values of an expression from ``start`` to ``end`` (seconds since 1970), every ``step`` seconds."""
        result = self._get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [Series(s["metric"], [(float(t), float(v)) for t, v in s["values"]]) for s in result]

    def value(self, expression: str) -> float:
        """The sum over the series of an expression now; 0 if there is none."""
        return sum(series.points[0][1] for series in self.query(expression))

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes: ``scrapeUrl``, ``labels`` and more."""
        return list(self._get("targets", state="active")["activeTargets"])

    def _get(self, path: str, **params: str | float) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{path}", params=params, timeout=TIMEOUT_S).json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]


@contextmanager
def prometheus(settings: Mapping[str, Any], folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with these settings, READY.

    Args:
        settings: what prometheus.yml says.
        folder: for its settings, its data and its log.
    """
    url = f"http://127.0.0.1:{free_ports()}"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    command = [
        program("prometheus", package="prometheus"),
        *(f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        f"--web.listen-address={url.removeprefix('http://')}",
    ]
    log = folder / "log"
    with running(*command, ready=lambda: requests.get(f"{url}/-/ready", timeout=TIMEOUT_S).ok, out=log, err=log):
        yield Prometheus(url)


@contextmanager
def scraping(metrics_port: int, door_port: int, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the project's configuration and alerts, which scrapes two ports of this machine.

    It scrapes more often, and alerts wait for 2 s instead of minutes, so that a test needn't.

    Args:
        metrics_port: of the server.
        door_port: of the front door's metrics.
        folder: for its data.
    """
    settings = yaml.safe_load(PROMETHEUS_CONFIG.read_text(encoding="utf-8"))
    settings["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "2s"}
    ports = {"densenet": metrics_port, "front-door": door_port}
    for job in settings["scrape_configs"]:
        job["static_configs"][0]["targets"] = [f"127.0.0.1:{ports[job['job_name']]}"]
    alerts = re.sub(r"for: \w+", "for: 2s", ALERTS.read_text(encoding="utf-8"))
    (folder / "alerts.yml").write_text(alerts, encoding="utf-8")
    with prometheus(settings, folder) as started:
        wait_until(lambda: started.value("sum(up)") == len(ports), 60)
        yield started


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard with its queries, as Grafana sends them: expression and legend."""

    title: str
    kind: str
    unit: str
    queries: list[tuple[str, str]]


def panels(rate_interval: str = "1m", instance: str = ".*") -> list[Panel]:
    """The dashboard's panels, its variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {"$__rate_interval": rate_interval, "$instance": instance}

    def filled(expression: str) -> str:
        for name, value in variables.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, expression
        return expression

    return [
        Panel(
            panel["title"],
            panel["type"],
            panel["fieldConfig"]["defaults"].get("unit", ""),
            [(filled(target["expr"]), target["legendFormat"]) for target in panel["targets"]],
        )
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    ]


def selectors(expression: str) -> list[str]:
    """The series that an expression reads: ``['up{job="densenet"}']``."""
    return re.findall(r"[a-zA-Z_:][\w:]*\{[^}]*\}", expression)
