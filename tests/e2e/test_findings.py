"""The known weaknesses of what TorchServe bundles, tried against the real server (docs/security-findings.md)."""

from __future__ import annotations

import hashlib
import socket
import time
import zipfile
import zlib

import pytest

from scripts.lib.frontend import frontend_jar
from scripts.lib.frontend.libraries import JAR_SHA256
from tests.endurance.fuzzing import GOOD
from tests.support.clients.wire import exchange
from tests.support.hostile.http import PATH, request
from tests.support.servers.running import Running

TIMEOUT_S = 60
IDLE_S = 30
"""RequestAggregator.IDLE_SECONDS of scripts/lib/frontend."""


def conversation(port: int, raw: bytes, seconds: float = 2) -> bytes:
    """Everything that the server says to ``raw`` until it closes or falls silent."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(raw)
        connection.settimeout(seconds)
        try:
            while piece := connection.recv(65_536):
                said += piece
        except OSError:
            pass
    return said


def test_the_jar_is_the_one_that_was_examined() -> None:
    jar = frontend_jar()
    assert hashlib.sha256(jar.read_bytes()).hexdigest() == JAR_SHA256
    with zipfile.ZipFile(jar) as packed:
        assert b"netty-codec-http.version=4.1.53.Final" in packed.read("META-INF/io.netty.versions.properties")


def test_log4j_looks_nothing_up(server: Running) -> None:
    """CVE-2021-44228 and its successors."""
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(3)
        lookup = f"${{jndi:ldap://127.0.0.1:{trap.getsockname()[1]}/x}}"
        for raw in (
            request(b"x", f"User-Agent: {lookup}", f"X-Api: {lookup}", f"Content-Type: {lookup}"),
            request(b"x", path=f"/predictions/{lookup}"),
            request(b"x", path=f"/{lookup}", method="GET"),
        ):
            assert exchange(server.port, raw, TIMEOUT_S).status in (400, 404, 405)
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize("bad", ["\x00", "\x01", "\x0b", "\x1f", "\x7f", "\x85"], ids=lambda c: f"0x{ord(c):02x}")
def test_control_character_in_a_headers_name_hides_no_header(server: Running, bad: str) -> None:
    """CVE-2021-43797: such a name passes Netty 4.1.53, and a server behind it may read another header.

    TorchServe is the last one in the row: what counts is that the length is taken from the real header alone.
    """
    hidden = request(b"", method="GET", path="/ping")
    raw = request(hidden, f"Transfer-Encoding{bad}: chunked", "Connection: close")
    assert conversation(server.port, raw).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(request(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 60"), id="three-lengths"),
        pytest.param(request(b"x", "Content-Length: 2"), id="two-lengths"),
        pytest.param(request(b"x", length="+1"), id="length-with-a-sign"),
        pytest.param(request(b"x", length="1, 1"), id="length-as-a-list"),
    ],
)
def test_contradicting_lengths_get_one_answer(server: Running, raw: bytes) -> None:
    """What could make two servers in a row see different requests: one answer at most, and then an end."""
    assert conversation(server.port, raw).count(b"HTTP/1.1 ") <= 1


def test_compressed_bodies_are_not_unpacked(server: Running) -> None:
    """CVE-2021-37136, CVE-2021-37137, CVE-2025-58057 are about Netty's decompressors: none is in use."""
    packed = zlib.compress(bytes(30_000_000), wbits=31)
    reply = exchange(server.port, request(packed, "Content-Encoding: gzip"), TIMEOUT_S)
    assert reply.status == 415
    assert b"received a compressed body" in reply.body


def test_slow_clients_do_not_keep_others_out(server: Running) -> None:
    """They hold no thread each, and a connection on which nothing happens is closed (scripts/lib/frontend)."""
    started = request(bytes(1000), path=PATH)[:-500]
    held = []
    try:
        for _ in range(300):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connection.sendall(started)
            held.append(connection)
        last = time.monotonic()
        for _ in range(5):
            assert exchange(server.port, GOOD, TIMEOUT_S).status == 200
        held[-1].settimeout(TIMEOUT_S)
        assert held[-1].recv(1) == b"", "closed without an answer"
        assert IDLE_S - 1 < time.monotonic() - last < TIMEOUT_S
    finally:
        for connection in held:
            connection.close()


def test_headers_are_limited(server: Running) -> None:
    """Netty's own limit is 8 kB for all headers of a request."""
    few, many = (exchange(server.port, request(b"x", f"X-Long: {'x' * n}"), TIMEOUT_S) for n in (4000, 100_000))
    assert b"that are no picture" in few.body
    assert (many.status, many.is_proper) == (400, True)
    assert b"Invalid HTTP message" in many.body
