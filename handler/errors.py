"""What can be wrong with a request: small classes, each with its HTTP status.

The handler turns a :class:`RequestError` into the answer of that one request, in TorchServe's own
error form; every other exception becomes an :class:`InternalServerException`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

MAX_MESSAGE = 1000
"""Characters of a message at most; the longest of this package have 600."""
SLOW_HEADER = "X-Densenet-Slow"
"""Of a 503: the request itself is slow; the front door doesn't send it to another host."""
BUSY_HEADER = "X-Densenet-Busy"
"""Of a 503: this server has no place for the request; another host may have one."""
_QUOTES = reprlib.Repr()
_QUOTES.maxstring = _QUOTES.maxother = 100
_QUOTES.maxlong = 40
_QUOTES.maxlevel = 2


class RequestError(Exception):
    """A request that can't be served because of what was sent.

    ``status`` and ``phrase`` are the HTTP status line, ``headers`` further ones; ``type`` names the
    error for programs; the message says what was received and what is accepted. It may hold what a
    client sent: it is made printable, and cut.
    """

    status = 400
    phrase = "Bad Request"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))

    @property
    def type(self) -> str:
        """The name of the error, the class name."""
        return type(self).__name__

    def to_dict(self) -> dict[str, object]:
        """The body of the answer: TorchServe's error form."""
        return {"code": self.status, "type": self.type, "message": str(self)}


class InvalidRequest(RequestError):
    """The form of the request is wrong: fields, JSON, base64, number of pictures."""


class InvalidParameter(RequestError):
    """A parameter beside the picture is out of range."""


class InvalidImage(RequestError):
    """The bytes aren't a picture that can be decoded."""


class ImageTooLarge(RequestError):
    """The picture has more pixels than the server decodes."""

    status = 413
    phrase = "Payload Too Large"


class ImageTooComplex(RequestError):
    """Decoding the picture takes longer than the server allows."""

    status = 413
    phrase = "Payload Too Large"


class TooManyInstances(RequestError):
    """One request carries more pictures than the server takes at once."""

    status = 413
    phrase = "Payload Too Large"


class InternalServerException(RequestError):
    """A fault of the server that concerns one request; TorchServe's name for it."""

    status = 500
    phrase = "Internal Server Error"


class ServerBusy(RequestError):
    """The server can't do this now; the same request may be served in some seconds.

    Args:
        message: says so.
        slow: the request itself takes long, so that another server wouldn't do better.
    """

    status = 503
    phrase = "Service Unavailable"

    def __init__(self, message: str, slow: bool = False) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": "2", SLOW_HEADER if slow else BUSY_HEADER: "1"}


def with_article(name: str) -> str:
    """A name with its article, "an AVIF"."""
    return f"{'an' if name[:1] in ('A', 'I') else 'a'} {name}"


def printable(text: str) -> str:
    """``text`` with an escape for each character that isn't printable, MAX_MESSAGE characters of it at most.

    What is left can be encoded, is one line, and commands no terminal.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: MAX_MESSAGE + 1])
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def quoted(value: object) -> str:
    """A client's value for a message: as Python writes it, but for the middle of what is long, or deep inside."""
    return _QUOTES.repr(value)
