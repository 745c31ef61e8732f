"""Requests as bytes on the wire, for what no HTTP client would send."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
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
    start = time.monotonic()

    def reply(status: int | None, body: bytes = b"", headers: Message | None = None) -> Reply:
        return Reply(status, body, time.monotonic() - start, headers or Message())

    with socket.create_connection(("127.0.0.1", port), timeout=CONNECT_TIMEOUT_S) as connection:
        connection.settimeout(timeout)
        # from a thread: the server may answer, and stop to read, before everything is sent
        sender = threading.Thread(target=_send, args=(connection, raw))
        sender.start()
        try:
            response = http.client.HTTPResponse(connection, method=raw[:5].partition(b" ")[0].decode("latin-1"))
            response.begin()
            return reply(response.status, response.read(), response.headers)
        except TimeoutError:
            return reply(-1)
        except (http.client.HTTPException, OSError):
            return reply(None)
        finally:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()


def _send(connection: socket.socket, raw: bytes) -> None:
    with suppress(OSError):  # closed by the server, or by us
        connection.sendall(raw)
