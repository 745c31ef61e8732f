"""Two commands at once, which want the same port, the same archive, or end in the middle of a start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil
import pytest

from scripts.lib.archive import archive_in_use, archive_path, ensure_archive
from scripts.lib.environment import java_home
from scripts.lib.management import Management
from scripts.lib.model_folder import ModelFolder, write_atomically
from scripts.lib.paths import BUNDLED, ROOT
from scripts.lib.precision import Wanted
from scripts.lib.server import run_folder
from tests.support.machine.ports import free_ports
from tests.support.machine.waiting import repeating, wait_until
from tests.support.servers.running import COMMAND_TIMEOUT_S, command
from tests.support.servers.worker import write_tiny_model

pytestmark = pytest.mark.slow

TIMEOUT_S = 60


def serve(port: int, store: Path, weights: Path = BUNDLED, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """``serve.py`` with one worker, started and not waited for."""
    arguments = ("--weights", str(weights), "--workers", "1", "--port", str(port), "--model-store", str(store))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), *arguments, *flags],
        env={**os.environ, "DENSENET_NO_VENV": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(*ports: int) -> None:
    """Stop the servers on ``ports``."""
    for port in ports:
        assert command("stop.py", "--port", str(port)).returncode == 0


def javas(port: int) -> list[psutil.Process]:
    """Java's processes of servers on ``port``."""
    word, found = str(run_folder(port)), []
    for process in psutil.process_iter(["name", "cmdline"]):
        with suppress(psutil.Error):
            if process.info["name"] == "java" and any(word in part for part in process.info["cmdline"] or ()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Another model than the bundled one."""
    return write_tiny_model(tmp_path_factory.mktemp("other"))


def test_of_two_servers_on_one_port_one_is_refused(tmp_path: Path) -> None:
    port = free_ports()
    both = [serve(port, tmp_path / name, BUNDLED, "--detach") for name in ("one", "two")]
    try:
        said = [process.communicate(timeout=COMMAND_TIMEOUT_S)[1] for process in both]
        refused, taken = sorted(zip(both, said), key=lambda pair: -pair[0].returncode)
        assert (refused[0].returncode, taken[0].returncode) == (1, 0), said
        assert f"a server of this project runs on port {port} already" in refused[1]
        status = command("status.py", "--port", str(port))
        assert (status.returncode, status.stdout.partition(":")[0]) == (0, "READY"), status.stderr
    finally:
        stop(port)
    assert javas(port) == []


def test_two_servers_of_one_model_store_serve_each_its_own(tmp_path: Path, other: ModelFolder) -> None:
    ports = {free_ports(): "densenet-pets", free_ports(): other.card.name}
    both = [
        serve(port, tmp_path, weights, "--detach") for port, weights in zip(ports, (BUNDLED, other.path), strict=True)
    ]
    try:
        for process, name in zip(both, ports.values(), strict=True):
            output, errors = process.communicate(timeout=COMMAND_TIMEOUT_S)
            assert process.returncode == 0, errors
            assert f"{name} (compact" in output
        assert {port: Management(f"http://127.0.0.1:{port + 1}").card()["name"] for port in ports} == ports
    finally:
        stop(*ports)


@contextmanager
def replaced(archive: Path, content: bytes, asks: bool) -> Iterator[None]:
    """While it lasts, another command writes ``content`` to ``archive``, as often as it can; ``asks``: if it may."""

    def write() -> None:
        with archive_in_use(archive.parent) if asks else nullcontext():
            write_atomically(archive, content)

    with repeating(write, pause=0.05):
        yield


@pytest.fixture(scope="module")
def others_archive(other: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The archive of the other model."""
    return ensure_archive(other, tmp_path_factory.mktemp("store"), Wanted())[0].read_bytes()


def test_an_archive_stays_until_the_server_has_read_it(tmp_path: Path, others_archive: bytes) -> None:
    port = free_ports()
    try:
        with replaced(archive_path(tmp_path), others_archive, asks=True):
            output, errors = serve(port, tmp_path, BUNDLED, "--detach").communicate(timeout=COMMAND_TIMEOUT_S)
        assert "READY" in output, errors
        assert Management(f"http://127.0.0.1:{port + 1}").card()["name"] == "densenet-pets"
    finally:
        stop(port)


def test_what_is_served_is_what_was_meant(tmp_path: Path, other: ModelFolder, others_archive: bytes) -> None:
    """Where something that asks nobody replaces the archive."""
    port = free_ports()
    try:
        with replaced(archive_path(tmp_path), others_archive, asks=False):
            process = serve(port, tmp_path, BUNDLED, "--detach")
            _, errors = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert process.returncode == 1
        assert f"the server serves '{other.card.name}', and 'densenet-pets' is meant: the archive in" in errors
        assert javas(port) == []
    finally:
        stop(port)


@pytest.mark.skipif(os.name != "posix", reason="needs a program in sh in Java's place")
def test_interrupted_at_javas_start_nothing_is_left(tmp_path: Path) -> None:
    port, home, number = free_ports(), tmp_path / "java", tmp_path / "number"
    (home / "bin").mkdir(parents=True)
    java, real = home / "bin" / "java", java_home() / "bin" / "java"
    interrupt = f'case "$*" in *ModelServer*) kill -INT "$(cat {number})";; esac'
    java.write_text(f'#!/bin/sh\n{interrupt}\nexec {real} "$@"\n', encoding="utf-8")
    java.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = serve(port, tmp_path, BUNDLED, JAVA_HOME=str(home), TMPDIR=str(temporary))
    number.write_text(str(process.pid), encoding="ascii")
    process.communicate(timeout=COMMAND_TIMEOUT_S)
    try:
        assert process.returncode in (0, 130)
        wait_until(lambda: not javas(port), TIMEOUT_S)
        assert list(temporary.iterdir()) == []
    finally:
        for left in javas(port):
            left.kill()
