"""A client that costs little: one request over and over, as bytes on the wire, from one thread.

A closed loop sends the next request when an answer is there; an open loop sends at a constant rate, whatever becomes of
the requests before.
"""

from __future__ import annotations

import itertools
import json
import re
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

ANSWER_TIMEOUT_S = 60
"""How long answers are waited for after the last request; what isn't there then counts as none."""
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_CLOSE = re.compile(rb"^connection: *close", re.IGNORECASE | re.MULTILINE)
_RETRY_AFTER = re.compile(rb"^retry-after: *\d+\r?$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What came back; ``due``, ``sent`` and ``ended`` in seconds on the monotonic clock.

    ``status`` is None if the connection was closed, or nothing came in time.
    """

    due: float
    sent: float
    ended: float
    status: int | None
    head: bytes
    body: bytes

    @property
    def seconds(self) -> float:
        """From the moment at which the request was due, see ``open_loop`` of ``scripts.lib.benchmarking.measure``."""
        return self.ended - self.due

    @property
    def label(self) -> str:
        """The label of a picture."""
        return str(json.loads(self.body)["label"])

    @property
    def says_when_again(self) -> bool:
        """Whether it has a Retry-After."""
        return bool(_RETRY_AFTER.search(self.head))


class _Connection:
    """A connection to ``port`` of this machine, with a request under way or none."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self.due = self.sent = 0.0
        self.rest, self.received = memoryview(b""), bytearray()

    def write(self) -> None:
        try:
            self.rest = self.rest[self.socket.send(self.rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self.rest = memoryview(b"")  # the server has closed it; its answer may be here all the same

    def read(self) -> bool:
        """Receive; False if the server has closed the connection."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.received += data
        return bool(data)

    def answer(self) -> tuple[bytes, bytes] | None:
        """Head and body of the answer, None while it isn't whole."""
        head, found, body = bytes(self.received).partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        whole = len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")  # the end of chunks
        return (head, body) if found and whole else None


class Traffic:
    """Requests under way, on connections that are kept.

    Args:
        port: of this machine.
        raw: the request.
        sink: called with each answer.
    """

    def __init__(self, port: int, raw: bytes, sink: Callable[[Answer], object]) -> None:
        self.port, self.raw, self.sink = port, raw, sink
        self.busy: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._selector = selectors.DefaultSelector()

    def send(self, due: float) -> None:
        """Begin a request."""
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = _Connection(self.port)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.due, connection.sent = due, time.monotonic()
        connection.rest, connection.received = memoryview(self.raw), bytearray()
        self.busy.add(connection)
        self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def turn(self, until: float) -> None:
        """Send and receive what is possible now; wait for something until then, if nothing is."""
        for key, events in self._selector.select(max(0.0, until - time.monotonic())):
            connection: _Connection = key.data
            if events & selectors.EVENT_WRITE and connection.rest:
                connection.write()
                if not connection.rest:
                    self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            if events & selectors.EVENT_READ:
                is_open = connection.read()
                whole = connection.answer() if connection in self.busy else None
                if whole:
                    self._end(connection, int(whole[0][9:12]), *whole)
                    # an answer that came before the request was sent ends the connection
                    is_open = is_open and not connection.rest and not _CLOSE.search(whole[0])
                elif not is_open and connection in self.busy:
                    self._end(connection, None)
                if not is_open:
                    self._drop(connection)

    def finish(self) -> None:
        """Wait for the answers that are due, and close the connections."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while self.busy and time.monotonic() < deadline:
            self.turn(deadline)
        for connection in list(self.busy):
            self._end(connection, None)
        for connection in list(self._idle):
            self._drop(connection)
        self._selector.close()

    def _end(self, connection: _Connection, status: int | None, head: bytes = b"", body: bytes = b"") -> None:
        self.busy.remove(connection)
        self._idle.append(connection)
        self.sink(Answer(connection.due, connection.sent, time.monotonic(), status, head, body))

    def _drop(self, connection: _Connection) -> None:
        self._idle.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()


def closed_loop(port: int, raw: bytes, clients: int, seconds: float) -> list[Answer]:
    """``clients`` requests at a time for so long."""
    answers: list[Answer] = []
    traffic = Traffic(port, raw, answers.append)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        while len(traffic.busy) < clients:
            traffic.send(now)
        traffic.turn(end)
    traffic.finish()
    return answers


def open_loop(port: int, raw: bytes, rate: float, seconds: float, sink: Callable[[Answer], object]) -> float:
    """A request every 1/``rate`` seconds for so long; returns when it began."""
    traffic = Traffic(port, raw, sink)
    start = time.monotonic()
    for number in itertools.takewhile(lambda n: n < rate * seconds, itertools.count()):
        due = start + number / rate
        traffic.turn(due)
        while time.monotonic() < due:
            traffic.turn(due)
        traffic.send(due)
    traffic.finish()
    return start


def served(answers: list[Answer], start: float, seconds: float) -> float:
    """Pictures a second that were answered with their labels, in so many seconds from ``start``."""
    return sum(a.status == 200 and a.ended <= start + seconds for a in answers) / seconds


def capacity(port: int, raw: bytes, workers: int, seconds: float) -> float:
    """The most pictures a second that closed loops of 1, 2 and 4 clients a worker are served, each for a third."""
    loops = (closed_loop(port, raw, clients * workers, seconds / 3) for clients in (1, 2, 4))
    return max(served(answers, answers[0].sent, seconds / 3) for answers in loops)
