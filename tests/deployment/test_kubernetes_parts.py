"""What the manifests say, carried out without a cluster: probes, the front door's settings, the autoscaler's metric."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
import yaml

from scripts.lib.paths import ROOT
from tests.support.clients.load import load
from tests.support.deployment.manifests import KUBERNETES, Manifest, find, pod_spec, render
from tests.support.machine.ports import free_ports
from tests.support.machine.programs import program, running
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.prometheus import prometheus
from tests.support.servers.running import Running, serving

DEADLINE_S = 60
PICTURE = CHELSEA.read_bytes()
NEW_POD_S = 12
"""A connection serves for 5 s after it was opened, and may then be idle for 5 s more, and serve once."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The bundled model behind one worker."""
    with serving(tmp_path_factory.mktemp("model_store"), "--workers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def cpu() -> list[Manifest]:
    return render(KUBERNETES / "overlays" / "cpu")


# ---- probes ---------------------------------------------------------------------------------------


def test_the_probes_pass_only_while_a_worker_is_ready(cpu: list[Manifest], server: Running) -> None:
    (container,) = pod_spec(cpu, "densenet")["containers"]
    probes = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]

    def passes(probe: Manifest) -> bool:
        python, script = probe["exec"]["command"]
        assert python == "python3"
        command = [sys.executable, str(ROOT / script), "--port", str(server.port)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=probe["timeoutSeconds"])
        return done.returncode == 0

    assert all(passes(probe) for probe in probes)
    model = f"{server.management}/models/densenet"
    requests.put(f"{model}?min_worker=0&synchronous=true", timeout=DEADLINE_S).raise_for_status()
    try:
        healthy = requests.get(f"{server.url}/ping", timeout=DEADLINE_S).ok
        assert healthy, "TorchServe calls itself healthy, workers or not"
        assert not any(passes(probe) for probe in probes)
    finally:
        requests.put(f"{model}?min_worker=1&synchronous=true", timeout=DEADLINE_S).raise_for_status()
    wait_until(lambda: passes(probes[0]), DEADLINE_S)


# ---- the front door -------------------------------------------------------------------------------


class Service:
    """What a cluster's service is to a client: one address, each connection given to the next of the pods in turn.

    Args:
        pods: their ports on this machine; a dead one's connections are closed at once. Those that are the same server
            are told apart by their place in the list; ``requests`` counts for each.
    """

    def __init__(self, pods: list[int]) -> None:
        self.pods = pods
        self.connections = 0
        self.requests: Counter[int] = Counter()
        self.open: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close_connections(self) -> None:
        """End the connections that are open, as pods do that stop."""
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                client, _ = self.listener.accept()
                place = self.connections % len(self.pods)
                self.connections += 1
                self.open.append(client)
                threading.Thread(target=self._serve, args=(client, place), daemon=True).start()

    def _serve(self, client: socket.socket, place: int) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self.pods[place])) as upstream:
            answers = threading.Thread(target=self._copy, args=(upstream, client), daemon=True)
            answers.start()
            self._copy(client, upstream, place)
            answers.join()

    def _copy(self, source: socket.socket, sink: socket.socket, place: int | None = None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if place is not None:
                    self.requests[place] += data.count(b"X-Request-ID: ")
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def front_door(manifests: list[Manifest], service: int, folder: Path) -> Iterator[str]:
    """The real nginx with the files of the rendered ConfigMap; the address and the ports are the test's."""
    nginx = program("nginx", package="nginx")
    port = free_ports()
    command = pod_spec(manifests, "front-door")["containers"][0]["command"]
    (mount, _) = pod_spec(manifests, "front-door")["containers"][0]["volumeMounts"]
    for name, text in find(manifests, "ConfigMap", "front-door")["data"].items():
        changed = text.replace("densenet:5000", f"127.0.0.1:{service}").replace("listen 5000", f"listen {port}")
        changed = changed.replace("listen 5005", f"listen 127.0.0.1:{port + 1}")
        (folder / name).write_text(changed.replace("/tmp/", f"{folder}/"), encoding="utf-8")
    assert command[:2] == ["nginx", "-c"]
    arguments = [argument.replace(mount["mountPath"], str(folder)) for argument in command[1:]]
    url = f"http://127.0.0.1:{port}"
    log = folder / "log"
    command = [nginx, "-p", str(folder), *arguments]
    with running(*command, ready=lambda: requests.get(url, timeout=DEADLINE_S).ok, out=log, err=log):
        yield url


def test_the_front_door_asks_another_pod_where_one_does_not_answer(
    cpu: list[Manifest], server: Running, tmp_path: Path
) -> None:
    """Nor does it close the service's one address after failures: they say nothing of the next pod."""
    dead = free_ports()
    service = Service([dead, server.port])
    with front_door(cpu, service.port, tmp_path) as url:
        probe = pod_spec(cpu, "front-door")["containers"][0]["readinessProbe"]["httpGet"]
        assert requests.get(url + probe["path"], timeout=DEADLINE_S).text == "Predict Dogs!"

        def predict() -> int:
            return requests.post(f"{url}/predict", files={"file": PICTURE}, timeout=DEADLINE_S).status_code

        assert predict() == 200
        assert service.connections == 2, "the first pod was dead, the second answered"
        service.pods = [dead]
        service.close_connections()
        assert [predict() for _ in range(5)] == [503] * 5
        service.pods = [server.port]
        assert predict() == 200
        assert requests.get(f"{url}/models/densenet", timeout=DEADLINE_S).status_code == 404, "management is closed"
    service.listener.close()


def test_a_new_pod_gets_its_share_within_seconds(cpu: list[Manifest], server: Running, tmp_path: Path) -> None:
    """Under load without a pause, on connections that were all opened before it was there."""
    service = Service([server.port])
    with front_door(cpu, service.port, tmp_path) as url, load(f"{url}/predictions/densenet", threads=8) as running:
        running.wait_for(40, DEADLINE_S)
        service.pods = [server.port, server.port]
        time.sleep(NEW_POD_S)
        before = service.requests.copy()
        running.wait_for(60, DEADLINE_S)
        after = service.requests - before
    service.listener.close()
    share = after[1] / after.total()
    print(f"{NEW_POD_S} s after a second pod was there it got {share:.0%} of {after.total()} requests")
    assert 0.25 < share < 0.75
    assert set(running.answers) == {200}


# ---- whose word counts -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The cluster of docs/kubernetes.md: a folder of one's own that names the Ingress controller's addresses."""
    folder = tmp_path_factory.mktemp("my-cluster")
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (generator,) = re.findall(r"^configMapGenerator:\n(?:[ -].*\n)+", guide, re.MULTILINE)
    (resource,) = [os.path.relpath(KUBERNETES / "overlays" / "cpu", folder)]
    (folder / "kustomization.yaml").write_text(f"resources: [{resource}]\n{generator}", encoding="utf-8")
    (folder / "proxies.conf").write_text("set_real_ip_from 127.0.0.2;\n", encoding="utf-8")
    return render(folder)


def clients(manifests: list[Manifest], folder: Path) -> dict[str, str]:
    """Whom the front door takes for the client: by the address that says ``X-Forwarded-For: 8.8.8.8, 9.9.9.9``."""
    sources = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    with front_door(manifests, 9, folder) as url:
        for source in sources:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            with socket.create_connection(address, DEADLINE_S, (source, 0)) as connection:
                said = "X-Forwarded-For: 8.8.8.8, 9.9.9.9\r\nConnection: close"
                connection.sendall(f"GET /{source} HTTP/1.1\r\nHost: x\r\n{said}\r\n\r\n".encode())
                while connection.recv(65536):
                    pass
    lines = [json.loads(line) for line in (folder / "log").read_text(encoding="utf-8").splitlines() if line[0] == "{"]
    return {source: line["client"] for source in sources for line in lines if line["uri"] == f"/{source}"}


def test_the_front_door_believes_nobody_until_it_is_told(cpu: list[Manifest], tmp_path: Path) -> None:
    assert "set_real_ip_from" not in re.sub(
        r"#.*", "", str(find(cpu, "ConfigMap", "front-door")["data"]["listen.conf"])
    )
    assert clients(cpu, tmp_path) == {source: source for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3")}


def test_the_front_door_believes_the_ingress_controller_alone(own: list[Manifest], tmp_path: Path) -> None:
    """Its limits are a client's: without the controller's word all clients would be one."""
    assert clients(own, tmp_path) == {"127.0.0.1": "127.0.0.1", "127.0.0.2": "9.9.9.9", "127.0.0.3": "127.0.0.3"}


# ---- the autoscaler's metric ----------------------------------------------------------------------


def discovered(component: str, port_name: str, phase: str, port: int) -> Manifest:
    """A port of a pod as Prometheus discovers it in a cluster."""
    meta = {
        "namespace": "densenet",
        "pod_name": "densenet-0",
        "pod_label_app_kubernetes_io_component": component,
        "pod_container_port_name": port_name,
        "pod_phase": phase,
    }
    labels = {f"__meta_kubernetes_{name}": value for name, value in meta.items()}
    return {"targets": [f"127.0.0.1:{port}"], "labels": labels}


def test_the_autoscalers_metric_rises_with_the_load_and_falls_with_it(server: Running, tmp_path: Path) -> None:
    """The adapter's query, filled in as the adapter does, asked of a real Prometheus that scrapes the real server."""
    rules = yaml.safe_load((KUBERNETES / "components/queue-length/prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = rules["rules"]["custom"]
    series, selector = re.fullmatch(r"(\w+)\{(.*)\}", rule["seriesQuery"]).groups()  # type: ignore[union-attr]
    query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", f'{selector},namespace="densenet",pod=~"densenet-0"')
    jobs = yaml.safe_load((KUBERNETES / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    for job in jobs:
        del job["kubernetes_sd_configs"]  # Debian's Prometheus lacks it; what it would find:
        job["static_configs"] = [
            discovered("server", "metrics", "Running", server.port + 2),
            discovered("server", "inference", "Running", server.port),
            discovered("server", "metrics", "Succeeded", server.port + 1),
            discovered("front-door", "http", "Running", server.port),
            discovered("front-door", "metrics", "Running", server.port + 3),
        ]
        job["scrape_interval"] = "1s"

    def predict(_: int) -> None:
        requests.post(server.predictions, data=PICTURE, timeout=DEADLINE_S).raise_for_status()

    predict(0)  # the series exists from the first request on
    with prometheus({"scrape_configs": jobs}, tmp_path) as started:

        def ask(question: str, at: float) -> float | None:
            found = started.query(question, at)
            if not found:
                return None
            (result,) = found
            return result.points[0][1]

        wait_until(lambda: len(started.targets()) == len(jobs), DEADLINE_S)
        found = {target["labels"]["job"]: target for target in started.targets()}
        ports = {"densenet": server.port + 2, "front-door": server.port + 3}
        for name, port in ports.items():
            assert found[name]["scrapeUrl"].endswith(f":{port}/metrics"), "its metrics, and nothing else"
            named = {"job": name, "namespace": "densenet", "pod": "densenet-0", "instance": "densenet-0"}
            assert found[name]["labels"] == named
        wait_until(lambda: ask(f"count_over_time({series}[1m])", time.time()), DEADLINE_S)
        until = time.monotonic() + 4
        with ThreadPoolExecutor(max_workers=8) as pool:
            while time.monotonic() < until:
                list(pool.map(predict, range(16)))
        ended = time.time()
        wait_until(lambda: (ask(f"count_over_time({series}[1m])", ended + 61) or 0) >= 3, DEADLINE_S)
        loaded = ask(query, time.time())
        # In a minute from now the window will hold the samples after the load alone.
        idle = ask(query, ended + 61)
        counter, before = ask(series, time.time()), ask(series, ended)
    assert loaded and loaded > 0.1
    assert idle == 0
    assert counter and before and counter >= before > 0, "a counter never falls: its rate is what scales"
