"""Requests as bytes on the wire, for what no HTTP client would send."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message

CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True)
class Reply:
    """What came back: the status, None if the connection was closed without an answer, -1 if nothing came in time."""

    status: int | None
    body: bytes
    seconds: float
    headers: Message = field(default_factory=Message)

    @property
    def is_proper(self) -> bool:
        """Success, or a 4xx in TorchServe's error form (501: a route that isn't served).

        Netty answers without a body what it can't read at all.
        """
        served = self.status is not None and (
            200 <= self.status < 300 or 400 <= self.status < 500 or self.status == 501
        )
        if self.status is None or not served:
            return False
        if self.status < 300 or not self.body:
            return True
        try:
            error = json.loads(self.body)
        except ValueError:
            return False
        return isinstance(error, dict) and error.get("code") == self.status and {"type", "message"} <= set(error)


def exchange(port: int, raw: bytes, timeout: float) -> Reply:
    """Send ``raw`` to a port of this machine; the first answer, waited for so many seconds."""
    return conversation(port, raw, timeout)[0]


def conversation(
    port: int, raw: bytes, timeout: float, answers: int = 1, later: Sequence[bytes] = (), ending: str = ""
) -> list[Reply]:
    """Send ``raw`` to a port of this machine, and read what comes back on the connection.

    Args:
        port: of this machine.
        raw: one request or several.
        timeout: seconds for which each answer is waited for.
        answers: to ``raw``.
        later: further requests, each sent when the answer before is there.
        ending: "half": nothing more is sent after ``raw``; "gone": nothing is read either.

    Returns:
        The answers, the last of them one without a status if there are fewer than requests.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=CONNECT_TIMEOUT_S) as connection:
        connection.settimeout(timeout)
        if ending == "gone":
            _send(connection, raw, ending)
            return [Reply(None, b"", 0)]
        stream = _Stream(connection)
        replies = _answered(connection, stream, raw, answers, ending, not later)
        for number, one in enumerate(later, 1):
            if not stream.is_over:
                replies += _answered(connection, stream, one, 1, "", number == len(later))
        return replies


class _Stream(io.BufferedReader):
    """What comes over a connection, for one answer after the other: http.client closes it after each."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection.makefile("rb", buffering=0))
        self.is_over = False

    def makefile(self, *_: object) -> _Stream:
        """As a socket's."""
        return self

    def close(self) -> None:
        """Nothing: the connection ends it."""


def _answered(
    connection: socket.socket, stream: _Stream, raw: bytes, answers: int, ending: str, last: bool
) -> list[Reply]:
    # from a thread: the server may answer, and stop to read, before everything is sent
    sender = threading.Thread(target=_send, args=(connection, raw, ending))
    sender.start()
    replies: list[Reply] = []
    try:
        while len(replies) < answers and not stream.is_over:
            replies.append(_answer(stream, raw[:5].partition(b" ")[0].decode("latin-1") if answers == 1 else None))
            stream.is_over = replies[-1].status in (None, -1) or replies[-1].headers.get("connection") == "close"
        return replies
    finally:
        if stream.is_over or last:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        sender.join()


def _answer(stream: _Stream, method: str | None) -> Reply:
    start = time.monotonic()

    def reply(status: int | None, body: bytes = b"", headers: Message | None = None) -> Reply:
        return Reply(status, body, time.monotonic() - start, headers or Message())

    try:
        response = http.client.HTTPResponse(stream, method=method)  # type: ignore[arg-type]  # it has what is used
        response.begin()
        return reply(response.status, response.read(), response.headers)
    except TimeoutError:
        return reply(-1)
    except (http.client.HTTPException, OSError):
        return reply(None)


def _send(connection: socket.socket, raw: bytes, ending: str) -> None:
    with suppress(OSError):  # closed by the server, or by us
        connection.sendall(raw)
        if ending == "half":
            connection.shutdown(socket.SHUT_WR)
