"""Predictions → the answer of one request, in the form that its ``Accept`` header prefers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handler.errors import RequestError
from handler.topk import Prediction

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
ANSWERED = "answered"
"""The outcome of a request that was served; else it is the type of the error."""
PNG = "image/png"


@dataclass(frozen=True)
class Response:
    """Status, content type, body and further headers of one answer, and its outcome for the metrics.

    Raises:
        UnicodeEncodeError: phrase, content type or a header isn't ASCII. TorchServe tells the lengths in characters
            and sends bytes; where it encodes, an error ends the worker (``ts.service``).
    """

    status: int
    phrase: str
    content_type: str
    body: bytes
    outcome: str = ANSWERED
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in (self.phrase, self.content_type, *self.headers, *self.headers.values()):
            text.encode("ascii")


def prefers(accept: str, wanted: str) -> bool:
    """Whether an ``Accept`` header ranks the media type ``wanted`` above JSON (RFC 9110, 12.5.1).

    JSON is the default: ``*/*``, ``text/*``, no header and types that this server doesn't have
    all get it.
    """
    quality = {wanted: 0.0, JSON: 0.0, "*/*": 0.0, "application/*": 0.0}
    for part in accept.lower().split(","):
        media_type, *parameters = (p.strip() for p in part.split(";"))
        q = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    q = float(parameter[2:])
                except ValueError:
                    q = 0.0
        if media_type in quality:
            quality[media_type] = q
    own = quality.pop(wanted)
    return own > 0 and own >= max(quality["*/*"], quality["application/*"]) and own > quality[JSON]


def prediction_response(
    pictures: Sequence[Sequence[Prediction]], accept: str, with_top: bool, instances: bool
) -> Response:
    """The answer to a request that was served.

    Args:
        pictures: for each picture its predictions, best first.
        accept: the request's ``Accept`` header.
        with_top: list all predictions, not the best alone (``topk`` was asked for).
        instances: KServe V1's form, ``{"predictions": […]}``.
    """
    if prefers(accept, "text/plain"):
        lines = [p.label for predictions in pictures for p in (predictions if with_top else predictions[:1])]
        return Response(200, "OK", TEXT, "".join(f"{line}\n" for line in lines).encode())
    answers: list[dict[str, Any]] = []
    for predictions in pictures:
        answer = predictions[0].to_dict()
        if with_top:
            answer["top"] = [p.to_dict() for p in predictions]
        answers.append(answer)
    return Response(200, "OK", JSON, json_text({"predictions": answers} if instances else answers[0]))


def error_response(error: RequestError) -> Response:
    """The answer to a request that can't be served: TorchServe's error form."""
    return Response(error.status, error.phrase, JSON, json_text(error.to_dict()), error.type, error.headers)


def describe_response(card: Mapping[str, Any]) -> Response:
    """The answer to a request for the model card."""
    return Response(200, "OK", JSON, json_text(card))


def json_text(data: object) -> bytes:
    """The body of a JSON answer.

    Raises:
        UnicodeEncodeError: a text in it has a lone surrogate.
    """
    return (json.dumps(data, ensure_ascii=False) + "\n").encode()
