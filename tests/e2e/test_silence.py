"""Nothing here asks another host unasked: the commands in a network of their own, in which every packet is recorded."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.lib.paths import ROOT
from tests.support.machine.ports import free_ports
from tests.support.machine.programs import program
from tests.support.pictures.golden import CHELSEA, PACKAGED
from tests.support.pictures.scenes import write_scenes
from tests.support.servers.running import COMMAND_TIMEOUT_S

CACHE = Path(".cache", "densenet-serving")
"""What a home may hold afterwards."""
CI = ("CI", "TF_BUILD", "JENKINS_URL")
"""Variables by which packages keep still in CI alone."""
RECORDER = """
import ipaddress, socket

pytestmark = pytest.mark.slow
packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
print("recording", flush=True)
while True:
    data, (_, kind, *_) = packets.recvfrom(65535)
    if kind == 0x0800:
        protocol, to, rest = data[9], data[16:20], data[(data[0] & 15) * 4:]
    elif kind == 0x86dd:
        protocol, to, rest = data[6], data[24:40], data[40:]
    else:
        continue
    host, port = ipaddress.ip_address(to), int.from_bytes(rest[2:4], "big")
    # a name may also be asked for on this machine, where a resolver passes it on
    if protocol in (6, 17) and (not host.is_loopback or (protocol, port) == (17, 53)):
        print(host, port, rest[8:] if port == 53 else "", flush=True)
"""


@dataclass(frozen=True)
class Alone:
    """A network with a way out that leads nowhere, an empty home, and what is recorded there."""

    name: str
    home: Path
    record: Path

    def command(self, *arguments: str, **environment: str) -> str:
        """What Python prints there, ``command("scripts/serve.py", "--detach")``; it must succeed."""
        ip = program("ip", package="iproute2")
        own = {name: value for name, value in os.environ.items() if name not in (*CI, "DENSENET_CACHE", "MPLCONFIGDIR")}
        done = subprocess.run(
            [ip, "netns", "exec", self.name, sys.executable, *arguments],
            cwd=ROOT,
            env={**own, "DENSENET_NO_VENV": "1", "HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def attempts(self) -> list[str]:
        """Every packet to another host so far, and every question for a name."""
        return self.record.read_text(encoding="utf-8").splitlines()[1:]

    def strays(self) -> list[Path]:
        """What lies in the home, but for the project's cache."""
        files = (path.relative_to(self.home) for path in self.home.rglob("*") if not path.is_dir())
        return [path for path in files if not path.is_relative_to(CACHE)]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    """Such a network; the recorder is part of it."""
    ip = program("ip", package="iproute2")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    there = Alone(f"densenet-{secrets.token_hex(3)}", tmp_path / "home", tmp_path / "record")
    there.home.mkdir()

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, capture_output=True, text=True)

    run("netns", "add", there.name)
    try:
        run("-n", there.name, "link", "add", "uplink", "type", "veth", "peer", "name", "router")
        for link in ("lo", "uplink", "router"):
            run("-n", there.name, "link", "set", link, "up")
        run("-n", there.name, "addr", "add", "10.213.1.2/24", "dev", "uplink")
        run("-n", there.name, "route", "add", "default", "via", "10.213.1.1")
        run("-n", there.name, "neigh", "add", "10.213.1.1", "lladdr", "02:00:00:00:00:01", "dev", "uplink")
        with there.record.open("wb") as record:
            recorder = subprocess.Popen(
                [ip, "netns", "exec", there.name, sys.executable, "-I", "-c", RECORDER], stdout=record
            )
        try:
            while not there.record.stat().st_size:
                assert recorder.poll() is None, "the recorder ended"
            yield there
        finally:
            recorder.kill()
            recorder.wait()
    finally:
        run("netns", "del", there.name)


def test_an_attempt_is_recorded(alone: Alone) -> None:
    """Otherwise the other tests couldn't fail."""
    ask = "import socket; s = socket.socket(); s.settimeout(0.2); s.connect_ex(('192.0.2.7', 443))"
    alone.command("-c", ask)
    alone.command("-c", "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'name?', ('127.0.0.53', 53))")
    seen = alone.attempts()
    assert any(line.startswith("192.0.2.7 443") for line in seen), seen
    assert any(line.startswith("127.0.0.53 53") for line in seen), seen


def test_a_server_asks_nobody(alone: Alone, tmp_path: Path) -> None:
    """From the first conversion of the model to the end of the server."""
    port, store = str(free_ports()), str(tmp_path / "store")
    alone.command("scripts/build_archive.py", "--weights", "bundled", "--model-store", store)
    serve = ("scripts/serve.py", "--detach", "--weights", "bundled", "--workers", "1")
    try:
        alone.command(*serve, "--port", port, "--model-store", store)
        alone.command("scripts/predict.py", str(CHELSEA), "--url", f"http://127.0.0.1:{port}")
    finally:
        alone.command("scripts/stop.py", "--port", port)
    assert alone.attempts() == []
    assert alone.strays() == []


def test_training_asks_nobody(alone: Alone, tmp_path: Path) -> None:
    scenes, out = str(write_scenes(tmp_path / "scenes", per_class=8)), str(tmp_path / "out")
    network = ("--growth-rate", "8", "--blocks", "2,2", "--init-features", "16", "--crop", "48")
    alone.command("scripts/train.py", scenes, "--out", out, *network, "--epochs", "1", "--batch", "8")
    alone.command("scripts/evaluate.py", scenes, "--weights", out, "--report", str(tmp_path / "report.html"))
    assert alone.attempts() == []
    assert alone.strays() == []


def test_a_benchmark_asks_nobody(alone: Alone, tmp_path: Path) -> None:
    """TorchServe's own handler imports OpenVINO, too."""
    picture = next(golden.path for golden in PACKAGED if golden.name == "flower")
    alone.command(
        *("scripts/benchmark.py", "--weights", "bundled", "--picture", str(picture), "--out", str(tmp_path / "out")),
        *("--repeats", "2", "--requests", "4", "--concurrency", "1", "--rate", "4", "--warm-up", "2"),
        *("--contenders", "ours,stock,bare"),
    )
    assert alone.attempts() == []
    assert alone.strays() == []
