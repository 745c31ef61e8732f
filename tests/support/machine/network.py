"""A network of its own, in which every packet to another host is recorded."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.lib.paths import ROOT
from tests.support.machine.programs import program

TIMEOUT_S = 300
CACHE = Path(".cache", "densenet-serving")
"""What a home may hold afterwards."""
CI = ("CI", "TF_BUILD", "JENKINS_URL")
"""Variables by which packages keep still in CI alone."""
RECORDER = """
import ipaddress, socket

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
            timeout=TIMEOUT_S,
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


@contextmanager
def alone_in_a_network(folder: Path) -> Iterator[Alone]:
    """Such a network, the recorder running; home and record in ``folder``."""
    ip = program("ip", package="iproute2")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    there = Alone(f"densenet-{secrets.token_hex(3)}", folder / "home", folder / "record")
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
