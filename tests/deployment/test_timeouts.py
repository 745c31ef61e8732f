"""The chain of time-outs, docs/front-door.md: each is longer than what it waits for. Every file is read here."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from handler.hold import MAX_HOLD_S
from scripts.client import asynchronous
from scripts.lib import server
from scripts.lib.paths import CONFIG, ROOT
from scripts.lib.serving import NOT_READY_SECONDS
from scripts.status import CARD_TIMEOUT_S
from tests.support.deployment.manifests import KUBERNETES, Manifest, find, pod_spec, render

KILL_S = 10
"""``end_family`` waits so long for what it killed."""
COMPUTING_S = 5
"""Room for what is neither decoding nor waiting: the network, on a machine that does other things, too."""
MANAGEMENT = ROOT / "scripts" / "lib" / "management.py"
POLL_S = 1
"""The agent looks at the queues five times a second."""
INGRESS_KEEPS_S = 60
"""upstream-keepalive-timeout of ingress-nginx, its default."""


def text(path: str | Path) -> str:
    """A file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def constant(pattern: str, *files: Path) -> float:
    """The one number that the files hold at a place, ``(…)`` in the pattern."""
    found = {match for file in files for match in re.findall(pattern, text(file))}
    assert len(found) == 1, f"{pattern} is there as {found or 'nothing'}"
    return float(found.pop())


@cache
def model() -> Manifest:
    """config/model-config.yaml."""
    loaded: Manifest = yaml.safe_load(text("config/model-config.yaml"))
    return loaded


@cache
def cluster() -> list[Manifest]:
    """What a cluster gets."""
    return render(KUBERNETES / "overlays" / "cpu")


def nginx(directive: str, context: str) -> float:
    """Seconds of a directive; the first after the line ``context`` in nginx.conf."""
    behind = text("config/nginx/nginx.conf").partition(f" {context}\n")[2]
    return float(re.findall(rf"^\s*{directive} (\d+)s;", behind, re.MULTILINE)[0])


def java(name: str) -> float:
    """A constant of the frontend's agent."""
    folder = ROOT / "scripts" / "lib" / "frontend" / "densenet"
    return constant(rf"static final int {name} = (\d+);", *folder.glob("*.java"))


def grace(service: str) -> float:
    """stop_grace_period of a service of compose.yaml."""
    return float(yaml.safe_load(text("compose.yaml"))["services"][service]["stop_grace_period"].removesuffix("s"))


def pod_grace(deployment: str) -> float:
    """Seconds from the end of preStop until a pod is killed."""
    spec = pod_spec(cluster(), deployment)
    return float(
        spec["terminationGracePeriodSeconds"] - spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    )


def probe(name: str, *keys: str) -> float:
    """The product of some of a probe's numbers."""
    settings = pod_spec(cluster(), "densenet")["containers"][0][name]
    product = 1.0
    for key in keys:
        product *= settings[key]
    return product


SECONDS: dict[str, Callable[[], float]] = {
    "max_decode_seconds": lambda: model()["limits"]["max_decode_seconds"],
    "max_wait_seconds": lambda: model()["limits"]["max_wait_seconds"],
    "gradients.SECONDS": lambda: constant(r"(?m)^SECONDS = ([\d.]+)", ROOT / "handler" / "gradients.py"),
    "responseTimeout": lambda: model()["responseTimeout"],
    "QUEUE_SECONDS": lambda: java("QUEUE_SECONDS"),
    "X-Densenet-Patience": lambda: constant(r"X-Densenet-Patience (\d+);", CONFIG / "nginx" / "nginx.conf"),
    "PATIENCE_SECONDS": lambda: java("PATIENCE_SECONDS"),
    "proxy_connect_timeout": lambda: nginx("proxy_connect_timeout", "include listen.conf;"),
    "proxy_next_upstream_timeout": lambda: nginx("proxy_next_upstream_timeout", "include listen.conf;"),
    "proxy_read_timeout": lambda: nginx("proxy_read_timeout", "include listen.conf;"),
    "proxy_read_timeout, slow": lambda: nginx("proxy_read_timeout", "location @slow {"),
    "proxy-read-timeout": lambda: float(
        find(cluster(), "Ingress", "front-door")["metadata"]["annotations"][
            "nginx.ingress.kubernetes.io/proxy-read-timeout"
        ]
    ),
    "TIMEOUT_S": lambda: asynchronous.TIMEOUT_S,
    "MAX_HOLD_S": lambda: MAX_HOLD_S,
    "DRAIN_TIMEOUT": lambda: server.DRAIN_TIMEOUT,
    "stop_grace_period, densenet": lambda: grace("densenet"),
    "stop_grace_period, front-door": lambda: grace("front-door"),
    "terminationGracePeriodSeconds, densenet": lambda: pod_grace("densenet"),
    "terminationGracePeriodSeconds, front-door": lambda: pod_grace("front-door"),
    "keepalive_timeout, hosts": lambda: nginx("keepalive_timeout", "upstream torchserve {"),
    "keepalive_time, hosts": lambda: nginx("keepalive_time", "upstream torchserve {"),
    "IDLE_SECONDS": lambda: java("IDLE_SECONDS"),
    "keepalive_timeout": lambda: nginx("keepalive_timeout", "include listen.conf;"),
    "startupTimeout": lambda: model()["startupTimeout"],
    "START_TIMEOUT": lambda: server.START_TIMEOUT,
    "startupProbe": lambda: probe("startupProbe", "periodSeconds", "failureThreshold"),
    "NOT_READY_SECONDS": lambda: NOT_READY_SECONDS,
    "maxRetryTimeoutInSec": lambda: model()["maxRetryTimeoutInSec"],
    "livenessProbe": lambda: probe("livenessProbe", "periodSeconds", "failureThreshold"),
    "status.py": lambda: CARD_TIMEOUT_S + constant(r'_call\("GET", _route\(version\), timeout=(\d+)\)\n', MANAGEMENT),
    "probes' timeoutSeconds": lambda: min(
        probe(name, "timeoutSeconds") for name in ("startupProbe", "readinessProbe", "livenessProbe")
    ),
    "HEALTHCHECK": lambda: constant(r"HEALTHCHECK .*--timeout=(\d+)s", ROOT / "Dockerfile"),
}

CHAIN: list[tuple[tuple[str, ...], float, str]] = [
    # A request, from the inside: what is waited for, one after the other, and seconds more; who waits for it.
    (("max_decode_seconds",), 0, "max_wait_seconds"),
    (("max_wait_seconds",), COMPUTING_S, "responseTimeout"),
    (("gradients.SECONDS",), COMPUTING_S, "responseTimeout"),
    (("QUEUE_SECONDS", "max_wait_seconds"), COMPUTING_S, "proxy_read_timeout"),
    (("QUEUE_SECONDS", "responseTimeout"), 0, "proxy_read_timeout, slow"),
    (("proxy_next_upstream_timeout", "proxy_read_timeout, slow"), 0, "proxy-read-timeout"),
    (("proxy-read-timeout",), COMPUTING_S, "TIMEOUT_S"),
    # A host without a READY worker, and hosts that can't be reached: another one, or 503 within 5 s.
    (("X-Densenet-Patience",), 0, "PATIENCE_SECONDS"),
    (("X-Densenet-Patience",) * 2, 0, "proxy_next_upstream_timeout"),
    (("proxy_connect_timeout",) * 3, 0, "proxy_next_upstream_timeout"),
    # What waits behind a request that hangs goes to another host; what one host is silent about doesn't.
    (("QUEUE_SECONDS",), POLL_S, "proxy_next_upstream_timeout"),
    (("proxy_next_upstream_timeout",), COMPUTING_S, "proxy_read_timeout"),
    # Connections that are kept: who sends closes first.
    (("keepalive_timeout, hosts", "keepalive_time, hosts"), COMPUTING_S, "IDLE_SECONDS"),
    ((), INGRESS_KEEPS_S, "keepalive_timeout"),
    # Stopping: what is under way is answered before anybody kills.
    (("MAX_HOLD_S",), 0, "responseTimeout"),
    (("QUEUE_SECONDS", "responseTimeout"), 0, "DRAIN_TIMEOUT"),
    *(
        (("DRAIN_TIMEOUT",), server.UPLOAD_GRACE + server.STOP_TIMEOUT + KILL_S, f"{who}, densenet")
        for who in ("stop_grace_period", "terminationGracePeriodSeconds")
    ),
    *(
        (("proxy_next_upstream_timeout", "proxy_read_timeout, slow"), 0, f"{who}, front-door")
        for who in ("stop_grace_period", "terminationGracePeriodSeconds")
    ),
    # Starting, and being restarted.
    (("startupTimeout",), 0, "START_TIMEOUT"),
    (("START_TIMEOUT",), 0, "startupProbe"),
    (("maxRetryTimeoutInSec",), 0, "livenessProbe"),
    (("NOT_READY_SECONDS",), 0, "livenessProbe"),
    (("status.py",), 0, "probes' timeoutSeconds"),
    (("status.py",), 0, "HEALTHCHECK"),
]


@pytest.mark.parametrize(("inner", "more", "outer"), CHAIN, ids=[f"{'+'.join(i)}<{o}" for i, _, o in CHAIN])
def test_each_is_longer_than_what_it_waits_for(inner: tuple[str, ...], more: float, outer: str) -> None:
    waited = sum(SECONDS[name]() for name in inner) + more
    assert waited < SECONDS[outer](), f"{inner} and {more} s take {waited} s, {outer} is {SECONDS[outer]()}"


@pytest.mark.parametrize("name", SECONDS)
def test_the_document_tells_them_as_they_are(name: str) -> None:
    section = text("docs/front-door.md").partition("## Time-outs")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `([^|]+)` \| ([\d.]+) \|", section, re.MULTILINE))
    assert set(told) == set(SECONDS)
    assert float(told[name]) == SECONDS[name]()
