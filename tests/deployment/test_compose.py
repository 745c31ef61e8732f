"""compose.yaml brought up for real by podman-compose: every route, scrape and dashboard query through it.

Debian's packages stand in for the public images of nginx and Prometheus; Grafana, which Debian doesn't have, is left
out: its provisioning files and its dashboard's queries are checked against this Prometheus.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from scripts.lib.paths import CONFIG, ROOT
from tests.support.deployment.images import Engine
from tests.support.machine.ports import free_ports
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.front_door import make_certificate
from tests.support.servers.prometheus import panels

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PICTURE = CHELSEA.read_bytes()
TIMEOUT_S = 60
PATIENCE_S = 180
STARTED = ["densenet", "front-door", "prometheus"]
"""What can be had here: all but Grafana."""


@dataclass(frozen=True)
class Up:
    """The services that are up."""

    engine: Engine
    folder: Path
    front_door: str
    prometheus: str
    compose: Callable[..., subprocess.CompletedProcess[str]]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers."""
        address = f"{self.prometheus}/api/v1/query"
        answer = requests.get(address, params={"query": expression}, timeout=TIMEOUT_S)
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return list(answer.json()["data"]["result"])


@pytest.fixture(scope="module")
def up(engine: Engine, image: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A copy with a certificate, brought up without Grafana on free ports, and down at the end."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "compose.yaml", folder)
    shutil.copytree(CONFIG, folder / "config", ignore=shutil.ignore_patterns("tls"))
    tls = folder / "config" / "nginx" / "tls"
    tls.mkdir()
    make_certificate(tls)
    os.chown(tls / "key.pem", 101, 101)
    engine.stand_in(_public(SERVICES["front-door"]["image"]), "nginx-light", "curl")
    engine.stand_in(_public(SERVICES["prometheus"]["image"]), "prometheus", "wget", entrypoint="/usr/bin/prometheus")
    port = free_ports()
    ports = {"DENSENET_PORT": port, "DENSENET_PROMETHEUS_PORT": port + 1, "DENSENET_GRAFANA_PORT": port + 2}
    environment = {**engine.environment, **{name: str(number) for name, number in ports.items()}}

    def compose(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "podman-compose"), "--in-pod", "false", *arguments]
        own = {**environment, **more}
        return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=300, check=False)

    try:
        started = compose("up", "--detach", "--no-build", *STARTED)
        assert started.returncode == 0, started.stdout + started.stderr
        up = Up(engine, folder, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}", compose)
        predictions = f"{up.front_door}/predictions/densenet"
        wait_until(
            lambda: requests.put(predictions, data=PICTURE, timeout=9).ok,
            PATIENCE_S,
            lambda: compose("logs").stdout[-3000:],
            pause=0.5,
        )
        yield up
    finally:
        ended = compose("down", "--volumes")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert engine.podman("ps", "--all", "--quiet").stdout.split() == []


def _public(name: str) -> str:
    """The full name of a public image."""
    return f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"


def test_every_service_is_pinned_locked_and_limited() -> None:
    for name, service in SERVICES.items():
        assert ":" in service["image"] or "build" in service, f"{name}: an image of a version"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
        assert "user" in service or "build" in service, f"{name}: without rights"
        assert "healthcheck" in service or "build" in service
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert waits["front-door"] == {"densenet": {"condition": "service_healthy"}}
    assert waits["grafana"] == {"prometheus": {"condition": "service_healthy"}}


def test_only_the_front_door_is_published_to_others() -> None:
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert published["densenet"] == []
    assert published["front-door"] == ["${DENSENET_PORT:-5000}:5000"]
    assert all(port.startswith("127.0.0.1:") for name in ("prometheus", "grafana") for port in published[name])
    assert SERVICES["densenet"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


@pytest.mark.parametrize("tls", ["", r"\1"])
def test_what_is_mounted_is_there(tls: str) -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{DENSENET_TLS:\+(.+?)\}", tls, volume).split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume


def test_the_front_doors_routes(up: Up) -> None:
    assert requests.get(up.front_door, timeout=TIMEOUT_S).text == "Predict Dogs!"
    files = {"file": ("chelsea.png", PICTURE, "image/png")}
    label = requests.post(f"{up.front_door}/predict", files=files, timeout=TIMEOUT_S).text
    answer = requests.put(f"{up.front_door}/predictions/densenet", data=PICTURE, timeout=TIMEOUT_S).json()
    assert answer["label"] == label
    assert requests.get(f"{up.front_door}/ping", timeout=TIMEOUT_S).json() == {"status": "Healthy"}
    page = requests.get(up.front_door, headers={"Accept": "text/html"}, timeout=TIMEOUT_S)
    assert page.headers["Content-Type"].startswith("text/html")
    for closed in ("models", "models/densenet", "metrics"):
        assert requests.get(f"{up.front_door}/{closed}", timeout=TIMEOUT_S).status_code == 404


def test_every_service_runs_without_rights_on_a_read_only_root(up: Up) -> None:
    for name, user in {"densenet": "10001", "front-door": "101", "prometheus": "65534"}.items():
        look = "id -u; grep CapEff /proc/1/status; touch /x"
        done = up.engine.podman("exec", f"densenet_{name}_1", "sh", "-c", look, check=False)
        assert done.stdout.split() == [user, "CapEff:", "0000000000000000"], done.stderr
        assert "Read-only file system" in done.stderr


def test_the_services_own_health_checks(up: Up) -> None:
    def healthy(name: str) -> bool:
        return up.engine.podman("healthcheck", "run", f"densenet_{name}_1", check=False).returncode == 0

    for name in STARTED:
        wait_until(partial(healthy, name), PATIENCE_S, pause=0.5)


def test_prometheus_scrapes_the_server(up: Up) -> None:
    wait_until(lambda: [r["value"][1] for r in up.query('up{job="densenet"}')] == ["1"], PATIENCE_S, pause=0.5)
    rules = requests.get(f"{up.prometheus}/api/v1/rules", timeout=TIMEOUT_S).json()["data"]["groups"]
    assert rules, "no alerts"
    assert all(rule["health"] != "err" for group in rules for rule in group["rules"])


def test_every_query_of_the_dashboard_is_answered(up: Up) -> None:
    queries = [query for panel in panels() for query, _ in panel.queries]
    assert len(queries) >= 5
    for query in queries:
        up.query(query)


def test_a_server_that_ends_is_started_again(up: Up) -> None:
    kill = 'import json, os; os.kill(json.load(open("/tmp/densenet/run/5000/state.json"))["pid"], 9)'
    up.engine.podman("exec", "densenet_densenet_1", "python3", "-c", kill)
    down = f"{up.front_door}/predictions/densenet"
    wait_until(lambda: requests.put(down, data=PICTURE, timeout=9).status_code != 200, PATIENCE_S, pause=0.5)
    wait_until(lambda: requests.put(down, data=PICTURE, timeout=9).ok, PATIENCE_S, pause=0.5)


def test_tls_is_switched_on_by_one_variable(up: Up) -> None:
    arguments = ("up", "--detach", "--no-build", "--no-deps", "--force-recreate", "front-door")
    changed = up.compose(*arguments, DENSENET_TLS="1")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    trusted = str(up.folder / "config" / "nginx" / "tls" / "certificate.pem")
    address = up.front_door.replace("http:", "https:")

    def answer() -> requests.Response:
        return requests.put(f"{address}/predictions/densenet", data=PICTURE, verify=trusted, timeout=9)

    wait_until(lambda: answer().ok, PATIENCE_S, pause=0.5)
    assert "strict-transport-security" in answer().headers
    assert requests.get(up.front_door, timeout=TIMEOUT_S).status_code == 400
    healthy = up.engine.podman("healthcheck", "run", "densenet_front-door_1", check=False)
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
