"""What a command says: errors in one line, progress as a bar on a terminal and plain lines elsewhere.

Standard library only: it also runs before ``.venv`` exists.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class CommandError(Exception):
    """A command can't go on; the message is one line: what happened, what was expected, what to do."""


def say(line: str) -> None:
    """Print a line for the person in front of the command."""
    print(line, flush=True)


def warn(line: str) -> None:
    """Print a warning to stderr; the command goes on."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A duration as people write it: ``48 s``, ``3 min 12 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """How far a long piece of work is, with the time left.

    On a terminal one line that is redrawn; elsewhere a plain line every ``every`` seconds.
    """

    def __init__(self, what: str, total: int, unit: str = "", every: float = 20.0) -> None:
        self.what, self.total, self.unit, self.every = what, total, unit, every
        self.done = 0
        self.start = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def advance(self, by: int = 1, note: str = "") -> None:
        """Count ``by`` more; draw when it is time."""
        self.done += by
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal else self.every) and self.done < self.total:
            return
        self.last = now
        spent = now - self.start
        left = spent / self.done * (self.total - self.done) if self.done else 0.0
        share = 100 * self.done // self.total if self.total else 100
        rest = f"{duration(left)} left" if self.done < self.total else f"took {duration(spent)}"
        line = f"{self.what}: {self.done}/{self.total}{self.unit} ({share} %), {rest}{'  ' + note if note else ''}"
        if self.terminal:
            end = "\n" if self.done >= self.total else ""
            print(f"\r\033[K{line}", end=end, file=sys.stderr, flush=True)
        elif spent > self.every or self.done < self.total:
            print(line, file=sys.stderr, flush=True)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``, counting each when the next is asked for."""
        for item in items:
            yield item
            self.advance()
