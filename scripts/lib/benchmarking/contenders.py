"""What is compared: the interface of a contender, and what all contenders share."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.lib.benchmarking.subject import Subject
from scripts.lib.console import CommandError
from scripts.lib.server import LOOPBACK, check_start


@dataclass(frozen=True)
class Picture:
    """A picture that is sent; ``width`` and ``height`` in px."""

    name: str
    content: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Answer:
    """What a contender says of a picture: its best label and that one's probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Request:
    """A picture as one contender takes it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Contender(ABC):
    """What can be started, given pictures and stopped, again and again.

    Attributes:
        name: its key in the command line and in the report.
        what: one line for the report's reader, with its settings; whole after :meth:`prepare`.
    """

    name: str
    what: str

    @abstractmethod
    def prepare(self, subject: Subject, java_home: Path, folder: Path) -> None:
        """Make in ``folder`` what a start needs; its time isn't measured.

        Raises:
            CommandError: the model doesn't suit this contender, or what it needs can't be had.
        """

    @abstractmethod
    def processes(self) -> list[psutil.Process]:
        """All its processes that live now, workers and whatever is in front of them."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it and remove what it left; without effect if it doesn't run."""


class HttpContender(Contender):
    """A server that answers over HTTP."""

    @abstractmethod
    def start(self) -> None:
        """Start the server and return; :meth:`ready` says when it can answer.

        Raises:
            CommandError: it doesn't start.
        """

    @abstractmethod
    def ready(self) -> tuple[int, int]:
        """Workers that can answer, and workers that there will be; (0, 1) while nobody listens.

        Raises:
            CommandError: the server or a worker died.
        """

    @abstractmethod
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that can answer."""

    @property
    @abstractmethod
    def address(self) -> tuple[str, int]:
        """Host and port."""

    @abstractmethod
    def request(self, picture: Picture) -> Request:
        """What is sent for ``picture``."""

    def parse(self, body: bytes) -> Answer:
        """The content of an answer, by default an object with ``label`` and ``probability``.

        Raises:
            ValueError, KeyError, TypeError: it isn't one.
        """
        data = json.loads(body)
        return Answer(str(data["label"]), float(data["probability"]))


def family(process: psutil.Process | None) -> list[psutil.Process]:
    """A process and all below it; nothing if it is gone."""
    if process is None:
        return []
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def free_ports() -> int:
    """The first of five free ports in a row, below the range that systems hand out by themselves.

    Raises:
        CommandError: a hundred tries found none.
    """
    problem = CommandError("no port was tried")
    for _ in range(100):
        port = random.randrange(20000, 32000, 5)  # noqa: S311 (no secret)
        try:
            check_start(port, LOOPBACK, LOOPBACK)
            return port
        except CommandError as error:
            problem = error
    raise CommandError(f"found no five free ports in a row between 20000 and 32000; the last try said: {problem}")


def count(number: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
