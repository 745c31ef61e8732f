"""HTTP connections against the real server: their ends, the order of their answers, clients that are gone, memory."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from scripts.lib.management import Management
from scripts.lib.server import find_server, held_workers
from tests.endurance.fuzzing import GOOD
from tests.support.clients.wire import exchange
from tests.support.hostile.http import JSON, MULTIPART, form_of, request
from tests.support.machine.control_groups import memory_group
from tests.support.machine.ports import free_ports
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running, in_foreground, wait_for_ready

TIMEOUT_S = 60
AT_ONCE_S = 15
"""An answer and the end of its connection; a connection that stays open does so for 30 s."""
ABANDONED = 90
PICTURE = CHELSEA.read_bytes()
ROUTES = {
    "prediction": (0, "POST /predictions/densenet", PICTURE, 200),
    "explanation": (0, "POST /explanations/densenet", PICTURE, 200),
    "error-of-the-handler": (0, "POST /predictions/densenet", b"nonsense", 400),
    "no-such-model": (0, "POST /predictions/nothing", PICTURE, 404),
    "no-such-route": (0, "GET /x", b"", 404),
    "ping": (0, "GET /ping", b"", 200),
    "management": (1, "GET /models/densenet?customized=true", b"", 200),
    "metrics": (2, "GET /metrics", b"", 200),
}


def head(line: str, body: bytes, *headers: str) -> bytes:
    """A request on the wire whose first line says its version of HTTP."""
    return "\r\n".join([line, "Host: localhost", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


@contextmanager
def connected(port: int, raw: bytes) -> Iterator[socket.socket]:
    """A connection on which ``raw`` was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(raw)
        yield connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize(
    ("version", "headers"), [("1.0", ()), ("1.1", ("Connection: close",))], ids=["HTTP/1.0", "Connection: close"]
)
@pytest.mark.parametrize(("offset", "line", "body", "status"), ROUTES.values(), ids=ROUTES)
def test_a_connection_ends_with_its_answer_where_the_client_asks_for_that(
    server: Running, offset: int, line: str, body: bytes, status: int, version: str, headers: tuple[str, ...]
) -> None:
    """What PHP's ``file_get_contents`` and ``ab`` speak: each answer took 30 s."""
    start = time.monotonic()
    with connected(server.port + offset, head(f"{line} HTTP/{version}", body, *headers)) as connection:
        answer = all_of(connection)
    assert time.monotonic() - start < AT_ONCE_S
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_http_1_0_may_keep_its_connection(server: Running) -> None:
    """``ab -k``."""
    kept = head("GET /ping HTTP/1.0", b"", "Connection: Keep-Alive")
    with connected(server.port, kept) as connection:
        for _ in range(3):
            answer = connection.recv(1 << 16)
            assert b"\r\nconnection: keep-alive\r\n" in answer.lower()
            connection.sendall(kept)


def test_pipelined_requests_are_answered_in_their_order(server: Running) -> None:
    """RFC 9112, 9.3.2: the quick ones were answered first."""
    slow, quick = head("POST /predictions/densenet HTTP/1.1", PICTURE), head("GET /ping HTTP/1.1", b"")
    last = head("GET /ping HTTP/1.1", b"", "Connection: close")
    with connected(server.port, (slow + quick * 3 + slow) * 5 + last + quick) as connection:
        answers = all_of(connection).split(b"HTTP/1.1 ")[1:]
    kinds = ["prediction" if b'"label"' in answer else "ping" if b"Healthy" in answer else "?" for answer in answers]
    assert kinds == ["prediction", "ping", "ping", "ping", "prediction"] * 5 + ["ping"]


def test_what_nobody_waits_for_is_dropped(server: Running) -> None:
    """Clients that are gone cost the next one nothing: before, all their pictures were computed."""
    found = find_server(server.port)
    assert found is not None
    with held_workers(found), ExitStack() as clients:
        for _ in range(ABANDONED):
            clients.enter_context(connected(server.port, GOOD))
        wait_until(lambda: pending(server) == ABANDONED, otherwise=lambda: f"{pending(server)} wait")
        clients.close()
        wait_until(lambda: pending(server) == 0, AT_ONCE_S, lambda: f"{pending(server)} still wait")
    assert exchange(server.port, GOOD, TIMEOUT_S).status == 200
    log = (found.folder / "access_log.log").read_text(encoding="utf-8")
    assert log.count(" 499 ") >= ABANDONED


def pending(server: Running) -> int:
    """Requests in the queue."""
    described: list[dict[str, Any]] = json.loads(
        exchange(server.port + 1, head("GET /models/densenet HTTP/1.1", b""), TIMEOUT_S).body
    )
    return int(described[0]["jobQueueStatus"]["pendingRequests"])


def test_a_request_waits_ten_seconds_for_its_turn_at_most(server: Running) -> None:
    """READY workers may be busy for minutes; the front door makes 429 of the answer."""
    found = find_server(server.port)
    assert found is not None
    before = [worker.pid for worker in Management(server.management).status().workers]
    with held_workers(found), ThreadPoolExecutor() as pool:
        for answer in pool.map(lambda _: exchange(server.port, GOOD, TIMEOUT_S), range(3)):
            assert (answer.status, answer.headers["x-densenet-busy"], answer.headers["retry-after"]) == (503, "1", "1")
            assert b"no worker was free for 10 s; try again in a second" in answer.body
            assert 9 < answer.seconds < 30
    assert [worker.pid for worker in Management(server.management).status().workers] == before


GIB = 1 << 30
LARGE = b"x" * (31 << 20)
"""A body that may just be."""


def chunked(body: bytes) -> bytes:
    """A request whose length isn't told beforehand."""
    pieces = (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))
    coded = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return request(coded, "Transfer-Encoding: chunked", length=None)


LARGE_REQUESTS = [
    request(LARGE),
    request(form_of(LARGE), MULTIPART),
    request(b'{"data": "%s"}' % LARGE, JSON),
    chunked(LARGE),
    *(request(LARGE, path=path) for path in ("/v1/models/densenet:predict", "/densenet/predict", "/invocations")),
    request(LARGE, path="/explanations/densenet"),
    chunked(LARGE[: 5 << 20]),
    request(LARGE[: 5 << 20]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "workers"), [(3 * GIB, 2), (3 * GIB // 2, 1)], ids=["3-GiB", "1.5-GiB"])
def test_large_bodies_do_not_fill_the_memory(tmp_path: Path, size: int, workers: int) -> None:
    """40 of them, with the workers busy and without: Java, which may take a quarter of the group, ended itself."""
    port = free_ports()
    with (
        memory_group(size) as group,
        in_foreground(group.shell, port, tmp_path, workers) as process,
        ThreadPoolExecutor(40) as pool,
    ):
        wait_for_ready(process, port)
        found = find_server(port)
        assert found is not None
        for held in (held_workers(found), nullcontext()):
            with held:
                sent = [pool.submit(exchange, port, raw, TIMEOUT_S) for raw in LARGE_REQUESTS * 4]
                refused = next(answer for answer in map(Future.result, as_completed(sent)) if answer.status == 503)
            assert refused.headers["x-densenet-busy"] == refused.headers["retry-after"] == "1"
            assert {answer.result().status for answer in sent} <= {400, 503}
            assert exchange(port, GOOD, TIMEOUT_S).status == 200
        assert find_server(port) == found and process.poll() is None
        assert group.kills() == 0
