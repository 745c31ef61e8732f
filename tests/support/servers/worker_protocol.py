"""TorchServe's protocol between frontend and worker (``ts.protocol.otf_message_handler``), the frontend's side."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ts.protocol.otf_message_handler import retrieve_msg

BINARY = ("image/png", "application/octet-stream")


@dataclass(frozen=True)
class Answer:
    """What a client gets for one request of a batch; the body is text but for BINARY."""

    status: int
    phrase: str
    content_type: str
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Sent:
    """A request as the frontend sends it to a worker: headers, and parameters with name, content type and bytes."""

    parameters: Sequence[tuple[str, str, bytes]]
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class _Wire:
    """A connection that has already received everything."""

    data: io.BytesIO

    def recv(self, length: int) -> bytes:
        """The next bytes."""
        return self.data.read(length)


def predict(service: Any, requests: Sequence[Sent]) -> tuple[int, list[Answer]]:
    """Status of the batch and its answers, through TorchServe's decoding, service and encoding."""
    command, batch = retrieve_msg(_Wire(io.BytesIO(_message(requests))))
    assert command == b"I"
    return answers_in(service.predict(batch))


def answers_in(message: bytes) -> tuple[int, list[Answer]]:
    """Status of the batch and the answers, as the frontend reads them."""
    data = io.BytesIO(message)

    def number() -> int:
        (value,) = struct.unpack("!i", data.read(4))
        assert isinstance(value, int)
        return value

    def text() -> str:
        return data.read(number()).decode()

    code, _ = number(), text()
    answers: list[Answer] = []
    while (length := number()) != -1:
        assert data.read(length).decode() == f"id-{len(answers)}"
        content_type, status, phrase = text(), number(), text()
        headers = {text(): text() for _ in range(number())}
        assert headers.pop("content-type", "") == content_type
        content = data.read(number())
        body = content if content_type in BINARY else content.decode()
        answers.append(Answer(status, phrase, content_type, body, headers))
    assert not data.read()
    return code, answers


def _message(requests: Sequence[Sent]) -> bytes:
    """A batch, ``retrieve_msg`` the other way round."""
    end = struct.pack("!i", -1)
    message = b"I"
    for number, request in enumerate(requests):
        message += _with_length(f"id-{number}".encode())
        for name, value in request.headers:
            message += _with_length(name.encode()) + _with_length(value.encode())
        message += end
        for name, content_type, content in request.parameters:
            message += _with_length(name.encode()) + _with_length(content_type.encode()) + _with_length(content)
        message += end
    return message + end


def _with_length(data: bytes) -> bytes:
    """Bytes behind their number."""
    return struct.pack("!i", len(data)) + data
