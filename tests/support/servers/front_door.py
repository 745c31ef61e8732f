"""The real nginx on a copy of ``config/nginx``, with hosts and address of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.lib.paths import CONFIG
from tests.support.machine.ports import free_ports
from tests.support.machine.programs import program, running
from tests.support.machine.waiting import wait_until

NOBODY = 10001
"""The user as whom nginx runs where the tests are root's: it needs no rights."""
TIMEOUT_S = 30
NO_CLIENT_LIMITS = {
    "rate=200r/s": "rate=100000r/s",
    **{f"limit_conn {zone} ": f"limit_conn {zone} 40" for zone in ("connections", "all", "medium")},
}
"""For ``replace`` below: one client may send what many do."""


@dataclass(frozen=True)
class FrontDoor:
    """A front door under test; ``folder`` holds its configuration, and what it wrote."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_port(self) -> int:
        """Where its metrics are."""
        return self.port + 1

    @property
    def predictions(self) -> str:
        """The route of the contract."""
        return f"{self.url}/predictions/densenet"

    def lines(self) -> list[dict[str, Any]]:
        """The access log so far."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text(encoding="utf-8").splitlines()]

    def log(self, **wanted: object) -> dict[str, Any]:
        """The line of the access log that has these values; nginx writes it when the request has ended."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            found.extend(entry for entry in self.lines() if wanted.items() <= entry.items())
            return bool(found)

        wait_until(written, TIMEOUT_S, lambda: f"no line with {wanted}")
        return found[0]

    def lost(self) -> str:
        """The lines of the access log that don't say 200, and the error log's end, for a failing test."""
        lines = (self.folder / "access.log").read_text(encoding="utf-8").splitlines()
        return "\n".join([*(line for line in lines if '"status":200,' not in line), self.errors()[-2000:]])

    def errors(self) -> str:
        """What it wrote to its error log."""
        return (self.folder / "error.log").read_text(encoding="utf-8", errors="replace")


def hosts_conf(addresses: Sequence[str]) -> str:
    """``hosts.conf`` with these hosts, in the form of the one in ``config/nginx``."""
    line = (CONFIG / "nginx" / "hosts.conf").read_text(encoding="utf-8").splitlines()[-1]
    assert "127.0.0.1:6000" in line
    return "".join(f"{line.replace('127.0.0.1:6000', address)}\n" for address in addresses)


def copy_configuration(folder: Path, hosts: Sequence[str], port: int, tls: bool, replace: Mapping[str, str]) -> Path:
    """``config/nginx`` in ``folder``, hosts and address replaced as docs/front-door.md says; its nginx.conf."""
    copy = folder / "nginx"
    shutil.copytree(CONFIG / "nginx", copy)
    (copy / "hosts.conf").write_text(hosts_conf(hosts), encoding="utf-8")
    listen = (copy / ("listen-tls.conf" if tls else "listen.conf")).read_text(encoding="utf-8")
    (copy / "listen.conf").write_text(listen.replace("listen 5000", f"listen 127.0.0.1:{port}"), encoding="utf-8")
    metrics = (copy / "listen-metrics.conf").read_text(encoding="utf-8")
    (copy / "listen-metrics.conf").write_text(metrics.replace(":5005;", f":{port + 1};"), encoding="utf-8")
    text = (copy / "nginx.conf").read_text(encoding="utf-8")
    for old, new in {" /tmp/": f" {folder}/", **replace}.items():
        assert old in text, f"nginx.conf holds no {old!r}"
        text = text.replace(old, new)
    (copy / "nginx.conf").write_text(text, encoding="utf-8")
    return copy / "nginx.conf"


def make_certificate(folder: Path) -> None:
    """``certificate.pem`` for 127.0.0.1, signed by itself, and ``key.pem``."""
    subprocess.run(
        [
            *(program("openssl", package="openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
        ],
        capture_output=True,
        check=True,
    )


@contextmanager
def _of_size(folder: Path, size: int) -> Iterator[None]:
    """``folder`` holds so many bytes and no more, while the block runs. 0: as many as the disk.

    That takes root: elsewhere the test is skipped, and fails in CI.
    """
    if not size:
        yield
        return
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("needs root for a disk of a given size")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def front_door(
    *hosts: str, tls: Path | None = None, replace: Mapping[str, str] | None = None, files: int = 0
) -> Iterator[FrontDoor]:
    """nginx before ``hosts`` (``address:port``), without rights, while the block runs.

    Args:
        hosts: TorchServe's inference addresses.
        tls: folder with certificate.pem and key.pem; None: no TLS.
        replace: text of nginx.conf to replace, for limits that a test can't wait for.
        files: bytes that its files may take, as in a container; 0: no limit.
    """
    nginx = program("nginx", package="nginx-light")
    port = free_ports()
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    # not pytest's temporary folder, which its owner alone may enter
    with tempfile.TemporaryDirectory(prefix="front-door-") as temporary, _of_size(Path(temporary), files):
        folder = Path(temporary)
        configuration = copy_configuration(folder, hosts, port, tls is not None, replace or {})
        if tls:
            shutil.copytree(tls, folder / "nginx" / "tls")
        for name in ("access.log", "error.log"):
            (folder / name).touch()
        if user:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        command = [nginx, "-c", str(configuration), "-g", "daemon off;"]
        door = FrontDoor(port, folder)
        logs = {"out": folder / "access.log", "err": folder / "error.log"}
        with running(*command, ready=lambda: _listens(port), **logs, **user):
            yield door


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
