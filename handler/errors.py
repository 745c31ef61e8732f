"""What can be wrong with a request: small classes, each with its HTTP status.

The handler turns a :class:`RequestError` into the answer of that one request, in TorchServe's own
error form; every other exception is a fault of the server.
"""

from __future__ import annotations

from collections.abc import Mapping

SLOW_HEADER = "X-Densenet-Slow"
"""Of a 503: the request itself is slow; the front door doesn't send it to another host."""


class RequestError(Exception):
    """A request that can't be served because of what was sent.

    ``status`` and ``phrase`` are the HTTP status line, ``headers`` further ones; ``type`` names the
    error for programs; the message says what was received and what is accepted.
    """

    status = 400
    phrase = "Bad Request"
    headers: Mapping[str, str] = {}

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
        self.headers = {"Retry-After": "2", **({SLOW_HEADER: "1"} if slow else {})}
