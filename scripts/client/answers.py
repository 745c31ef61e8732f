"""What comes back: predictions, one picture's result, and what can go wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Union

from handler.topk import Prediction
from scripts.lib.console import CommandError

Picture = Union[str, "os.PathLike[str]", bytes]
"""A picture: the path of its file, or the bytes of the file."""
P = TypeVar("P", bound=Picture)


class ClientError(CommandError):
    """No answer; the message says what happened and what to do."""


class Unreadable(ClientError):
    """The picture's file can't be read; nothing was sent."""


class Refused(ClientError):
    """The server can't serve this picture, and wouldn't if it were sent again.

    ``status`` is HTTP's; ``type`` names the error for programs, as docs/http.md lists them, "" where the server
    doesn't say.
    """

    def __init__(self, status: int, type_: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.type = status, type_


class Unavailable(ClientError):
    """The server can't be used at the moment, for any picture.

    It doesn't answer, was busy for too long, asks for a token, or doesn't serve the model.
    """


@dataclass(frozen=True)
class Answer:
    """The prediction for one picture.

    ``label``, ``index`` and ``probability`` (0 to 1) are the best class's; the index is its identity. ``top`` holds
    the best classes, best first, as many as were asked for with ``topk``; none if it wasn't.
    """

    label: str
    index: int
    probability: float
    top: tuple[Prediction, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """An answer as the server sent it.

        Raises:
            KeyError, TypeError, ValueError: it isn't one.
        """
        top = tuple(_prediction(item) for item in data.get("top", ()))
        best = _prediction(data)
        return cls(best.label, best.index, best.probability, top)

    def to_dict(self) -> dict[str, Any]:
        """The answer as the server sent it, in plain JSON types."""
        best = Prediction(self.label, self.index, self.probability).to_dict()
        return {**best, "top": [p.to_dict() for p in self.top]} if self.top else best


def _prediction(data: Mapping[str, Any]) -> Prediction:
    return Prediction(str(data["label"]), int(data["index"]), float(data["probability"]))


@dataclass(frozen=True)
class Result(Generic[P]):
    """What became of one picture of many: either ``answer`` or ``error`` is there."""

    picture: P
    answer: Answer | None = None
    error: Unreadable | Refused | None = None
