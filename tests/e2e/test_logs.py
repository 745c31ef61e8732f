"""Whoever reaches the inference port can neither fill the disk with logs nor write records of his own into them."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import requests

from scripts.lib.management import Management
from scripts.lib.paths import RUN
from scripts.lib.server import LOG, OUTPUT
from tests.support.clients.wire import exchange
from tests.support.hostile.http import request
from tests.support.machine.waiting import wait_until
from tests.support.servers.running import Running, foreground, serving, wait_for_workers

TIMEOUT_S = 60
ACCESS = "access_log.log"
RECORD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} [ -~]*")
"""A line of a log: it begins with its time, and holds what can be printed, here in ASCII."""


def lines(port: int, name: str) -> list[str]:
    """The lines of a log of the server on ``port``, ended by line feeds alone."""
    return (RUN / str(port) / name).read_bytes().decode("utf-8").split("\n")[:-1]


def test_what_is_no_http_is_logged_in_few_lines(server: Running) -> None:
    """A negative chunk made Netty raise twice: 59 lines of tracebacks a request."""
    before, started = len(lines(server.port, LOG)), time.monotonic()
    for _ in range(50):
        raw = request(b"-5\r\nx", "Transfer-Encoding: chunked", length=None)
        assert exchange(server.port, raw, TIMEOUT_S).status is None
    said = lines(server.port, LOG)[before:]
    assert 1 <= len(said) <= 10 + (time.monotonic() - started) + 1
    assert all(RECORD.fullmatch(line) for line in said), said
    assert max(map(len, said)) < 500
    assert "DecoderException: java.lang.IllegalArgumentException: minimumReadableBytes: -5" in said[0]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(request(b"x", path="/a%0a2026-01-01T00:00:00,000%20-%20FORGED%1b[31m"), id="percent"),
        pytest.param(b"GET /a\x1b[31mFORGED HTTP/1.1\r\nHost: a\r\n\r\n", id="escape"),
        pytest.param(b"GET /a\x9b31mFORGED HTTP/1.1\r\nHost: a\r\n\r\n", id="8-bit-escape"),
        pytest.param(b"GET /a\xc2\x85\xe2\x80\xa8\xe2\x80\xaeFORGED HTTP/1.1\r\nHost: a\r\n\r\n", id="unicode-lines"),
        pytest.param(b"GET /a HT\x1b[31mFORGED/1.1\r\nHost: a\r\n\r\n", id="version"),
        pytest.param(b"GET /a\nFORGED HTTP/1.1\r\nHost: a\r\n\r\n", id="line-feed"),
        pytest.param(b"GET /a\rFORGED HTTP/1.1\r\nHost: a\r\n\r\n", id="carriage-return"),
        pytest.param(b"G\x1b[31mET /FORGED HTTP/1.1\r\nHost: a\r\n\r\n", id="method"),
        pytest.param(request(b"x", "User-Agent: \x1b[31mFORGED", "X-Request-Id: \x1b[31mFORGED"), id="headers"),
    ],
)
def test_a_client_forges_no_record_and_no_escape(server: Running, raw: bytes) -> None:
    before, server_log = len(lines(server.port, ACCESS)), lines(server.port, LOG)
    assert exchange(server.port, raw, TIMEOUT_S).status in (400, 404)
    said = lines(server.port, ACCESS)[before:]
    assert len(said) == 1
    assert RECORD.fullmatch(said[0]), said
    assert lines(server.port, LOG) == server_log


def test_the_name_of_a_model_forges_no_record(server: Running) -> None:
    before, name = len(lines(server.port, LOG)), "a%0aFORGED%1b[31m"
    models = f"{server.management}/models"
    requests.post(
        f"{models}?url=densenet.mar&initial_workers=0&model_name={name}", timeout=TIMEOUT_S
    ).raise_for_status()
    requests.delete(f"{models}/{name}", timeout=TIMEOUT_S).raise_for_status()
    said = lines(server.port, LOG)[before:] + lines(server.port, ACCESS)[-2:]
    assert "FORGED" in "".join(said)
    assert all(RECORD.fullmatch(line) for line in said), said


@pytest.mark.slow
def test_every_log_is_bounded(model_store: Path) -> None:
    with serving(model_store, "--workers", "1", DENSENET_LOG_SIZE="2 KB") as running:
        folder = RUN / str(running.port)
        with requests.Session() as session:
            for _ in range(400):  # some 70 bytes each
                session.get(f"{running.url}/ping", timeout=TIMEOUT_S)
        names = {f"access_log.{i}.log.gz" for i in range(1, 6)}
        wait_until(lambda: names == {path.name for path in folder.glob("access_log.*.gz")})
        kept = {path.name for path in folder.rglob("*.log*")} - names
        assert kept - {f"server.{i}.log.gz" for i in range(1, 6)} == {LOG, OUTPUT, ACCESS}
        assert (folder / ACCESS).stat().st_size < 2200
        assert (folder / LOG).stat().st_size < 4000, "the line with the settings is the longest"
        output = (folder / OUTPUT).read_bytes()
        for _ in range(20):
            exchange(running.port, request(b"-5\r\nx", "Transfer-Encoding: chunked", length=None), TIMEOUT_S)
        assert (folder / OUTPUT).read_bytes() == output, "nothing bounds what Java itself prints: it must be nothing"


@pytest.mark.slow
def test_the_foreground_shows_what_is_logged_across_rotations(
    model_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENSENET_LOG_SIZE", "2 KB")
    with foreground(model_store) as (process, port):
        folder, running = RUN / str(port), Running(port, model_store, "")
        try:
            old = (folder / LOG).stat().st_ino
            for _ in range(2):
                os.kill(Management(running.management).status().workers[0].pid, signal.SIGKILL)
                wait_for_workers(running, 0)
                wait_for_workers(running, 1)
            assert (folder / LOG).stat().st_ino != old
        finally:
            process.terminate()
        output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert output.count("MODEL_LOG - Torch worker started.") == 2
    assert output.endswith("stopped\n")
