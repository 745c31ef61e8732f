"""Who reaches what: every port and route, tried from another network namespace and from the inference port."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from scripts.lib.management import Management
from scripts.lib.paths import RUN
from scripts.lib.server import TOKENS
from tests.support.machine.ports import BLOCK, FIRST, free_ports
from tests.support.machine.programs import program
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running, called, command, serving

pytestmark = pytest.mark.slow

TIMEOUT_S = 60
NAMES = ("inference", "management", "metrics", "gRPC inference", "gRPC management")
ROUTES = {
    "management": ["/models", "/models/densenet", "/models/densenet/1.0", "/token?type=management"],
    "metrics": ["/metrics"],
}
PROBE = """
import json, sys, urllib.request, urllib.error

answers = {}
for name, url in json.loads(sys.argv[1]).items():
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            answers[name] = reply.status
    except urllib.error.HTTPError as error:
        answers[name] = error.code
    except Exception as error:
        answers[name] = str(getattr(error, "reason", error))
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Outside:
    """Another host, as far as the network goes: a namespace of its own, and this machine's address in it."""

    name: str
    address: str

    def ask(self, urls: dict[str, str]) -> dict[str, int | str]:
        """GET each URL from there: its status, or why there was none."""
        ip = program("ip", package="iproute2")
        command = [ip, "netns", "exec", self.name, sys.executable, "-I", "-c", PROBE, json.dumps(urls)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        answers: dict[str, int | str] = json.loads(done.stdout)
        return answers

    def ports(self, server: Running) -> dict[str, bool]:
        """Which of a server's five ports are open from there."""
        answers = self.ask({name: f"http://{self.address}:{server.port + i}/ping" for i, name in enumerate(NAMES)})
        return {
            name: "refused" not in str(answer) and "timed out" not in str(answer) for name, answer in answers.items()
        }


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    """A network namespace with a cable (veth) to this one."""
    ip = program("ip", package="iproute2")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    tag = secrets.token_hex(3)
    number = (free_ports() - FIRST) // BLOCK  # which no other test has
    network = f"10.{213 + number // 250}.{number % 250}"
    there = Outside(f"densenet-{tag}", f"{network}.1")

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, capture_output=True, text=True)

    run("netns", "add", there.name)
    try:
        run("link", "add", f"dn{tag}", "type", "veth", "peer", "name", "uplink", "netns", there.name)
        run("addr", "add", f"{there.address}/24", "dev", f"dn{tag}")
        run("link", "set", f"dn{tag}", "up")
        run("-n", there.name, "addr", "add", f"{network}.2/24", "dev", "uplink")
        run("-n", there.name, "link", "set", "uplink", "up")
        yield there
    finally:
        run("netns", "del", there.name)


def test_by_default_nothing_is_open(server: Running, outside: Outside) -> None:
    assert outside.ports(server) == dict.fromkeys(NAMES, False)


def test_opened_to_others_inference_alone_is_open(model_store: Path, outside: Outside) -> None:
    with serving(model_store, "--workers", "1", "--host", "0.0.0.0") as running:
        assert outside.ports(running) == dict.fromkeys(NAMES, False) | {"inference": True}
        # what could change the server isn't on that port
        before = Management(running.management).status()
        base = f"http://{outside.address}:{running.port}"
        answers = outside.ask({route: base + route for route in [*ROUTES["management"], "/metrics"]})
        assert set(answers.values()) <= {404, 405}
        for method, route in (
            ("POST", "/models?url=densenet.mar&model_name=other"),
            ("POST", "/models?url=http://127.0.0.1:9/evil.mar"),
            ("PUT", "/models/densenet?min_worker=0"),
            ("PUT", "/models/densenet/1.0/set-default"),
            ("DELETE", "/models/densenet"),
            ("POST", "/workflows?url=x.war"),
        ):
            answer = requests.request(method, f"{running.url}{route}", timeout=TIMEOUT_S)
            assert answer.status_code in (404, 405), (method, route, answer.text)
        assert Management(running.management).status().workers[0].pid == before.workers[0].pid


@pytest.fixture(scope="module")
def opened(model_store: Path) -> Iterator[Running]:
    """A server on which every flag opens what it can."""
    hosts = ("--host", "0.0.0.0", "--management-host", "0.0.0.0", "--metrics-host", "0.0.0.0")
    with serving(model_store, "--workers", "1", "--token", *hosts) as running:
        yield running


def test_opened_management_asks_for_the_token(opened: Running, outside: Outside) -> None:
    base = f"http://{outside.address}:{opened.port}"
    urls = {route: f"http://{outside.address}:{opened.port + 1}{route}" for route in ROUTES["management"]}
    answers = outside.ask({**urls, "predict": f"{base}/predictions/densenet"})
    assert set(answers.values()) == {400}, answers
    closed = {name for name, is_open in outside.ports(opened).items() if not is_open}
    assert closed == {"gRPC inference", "gRPC management"}


def test_opened_metrics_are_metrics_alone(opened: Running, outside: Outside) -> None:
    """Without a token: TorchServe asks for none there."""
    base = f"http://{outside.address}:{opened.port + 2}"
    routes = [*ROUTES["management"], "/predictions/densenet", "/metrics"]
    answers = outside.ask({route: base + route for route in routes})
    assert answers.pop("/metrics") == 200
    assert set(answers.values()) <= {404, 405}, answers


def test_tokens_are_rotated(opened: Running) -> None:
    """By a command; the old ones are refused, and the file stays its owner's alone."""
    keys = RUN / str(opened.port) / TOKENS

    def headers() -> dict[str, dict[str, str]]:
        tokens = json.loads(keys.read_text(encoding="utf-8"))
        return {kind: {"Authorization": f"Bearer {token['key']}"} for kind, token in tokens.items()}

    def accepted(tokens: dict[str, dict[str, str]]) -> dict[str, int]:
        predicted = requests.put(
            opened.predictions, data=CHELSEA.read_bytes(), headers=tokens["inference"], timeout=TIMEOUT_S
        )
        described = requests.get(f"{opened.management}/models", headers=tokens["management"], timeout=TIMEOUT_S)
        return {"inference": predicted.status_code, "management": described.status_code}

    assert keys.parent.stat().st_mode & 0o777 == 0o700
    first = headers()
    assert accepted(first) == {"inference": 200, "management": 200}
    done = command("rotate_tokens.py", "inference", "--port", str(opened.port))
    assert (done.returncode, done.stdout) == (0, f"rotated: inference; the new tokens are in {keys}\n"), done.stderr
    assert accepted(first) == {"inference": 400, "management": 200}
    second = headers()
    assert command("rotate_tokens.py", "--port", str(opened.port)).returncode == 0
    assert accepted(second) == {"inference": 400, "management": 400}
    assert accepted(headers()) == {"inference": 200, "management": 200}
    assert headers()["API"] == first["API"]
    assert keys.stat().st_mode & 0o777 == 0o600
    assert keys.parent.stat().st_mode & 0o777 == 0o700
    # the project's own commands find the new ones
    assert command("status.py", "--port", str(opened.port)).returncode == 0
    # no other token renews one
    for kind in ("inference", "management"):
        own = headers()[kind]
        answer = requests.get(f"{opened.management}/token?type=management", headers=own, timeout=TIMEOUT_S)
        assert answer.status_code == 400, answer.text
    assert requests.get(f"{opened.management}/token?type=management", timeout=TIMEOUT_S).status_code == 400


def test_there_are_no_tokens_to_rotate(server: Running) -> None:
    port = str(server.port)
    done = called("rotate_tokens.py", "--port", port)
    assert done.stderr == (
        f"error: the server on port {port} asks for no tokens; serve.py --token starts one that does\n"
    )
    port = str(free_ports())
    done = called("rotate_tokens.py", "--port", port)
    assert done.stderr == f"error: no server of this project runs on port {port}; serve.py --token starts one\n"
    assert done.returncode == 1


def test_no_other_site_may_read_an_answer(server: Running) -> None:
    """CORS is closed: no answer allows an origin, and a preflight is no success."""
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
    for method in ("OPTIONS", "PUT"):
        answer = requests.request(
            method, server.predictions, data=CHELSEA.read_bytes(), headers=origin, timeout=TIMEOUT_S
        )
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_models_come_from_the_model_store_alone(server: Running, tmp_path: Path) -> None:
    """No URL, no path out of the store, no symbolic link in it, and no folder, which TorchServe took from anywhere."""
    elsewhere, folder, link = tmp_path / "elsewhere.mar", tmp_path / "folder", server.model_store / "link.mar"
    elsewhere.write_bytes((server.model_store / "densenet.mar").read_bytes())
    with zipfile.ZipFile(elsewhere) as archive:
        archive.extractall(folder)
    link.symlink_to(elsewhere)
    before = requests.get(f"{server.management}/models", timeout=TIMEOUT_S).json()
    paths = (str(elsewhere), f"../{elsewhere.name}", str(folder), f"{folder}/", link.name)
    for name in ("http://127.0.0.1:9/x.mar", f"file://{elsewhere}", f"file://{folder}", *paths):
        parameters = {"url": name, "model_name": "evil", "initial_workers": "0"}
        answer = requests.post(f"{server.management}/models", params=parameters, timeout=TIMEOUT_S)
        assert 400 <= answer.status_code < 500, (name, answer.status_code, answer.text)
    assert requests.get(f"{server.management}/models", timeout=TIMEOUT_S).json() == before
