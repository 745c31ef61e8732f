"""What a command says: errors in one line, progress as a bar on a terminal and plain lines elsewhere.

Standard library only: it also runs before ``.venv`` exists.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")
COLOURS = {"red": 31, "green": 32, "yellow": 33}
CLEAR = "\r\033[K"
"""Empties the line on which the cursor is."""


class CommandError(Exception):
    """A command can't go on; the message is one line: what happened, what was expected, what to do."""


def say(line: str) -> None:
    """Print a line for the person in front of the command."""
    print(line, flush=True)


def warn(line: str) -> None:
    """Print a warning to stderr; the command goes on."""
    tell(f"{paint('warning:', 'yellow', sys.stderr)} {line}")


def complain(line: str) -> None:
    """Print an error to stderr."""
    tell(f"{paint('error:', 'red', sys.stderr)} {line}")


def tell(line: str) -> None:
    """Print a line to stderr, in the place of a progress bar that may stand there."""
    print(f"{CLEAR if is_terminal(sys.stderr) else ''}{line}", file=sys.stderr, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person sees ``stream``, on a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and _understands_escapes()


def paint(text: str, colour: str, stream: TextIO) -> str:
    """``text`` in one of ``COLOURS``, on a terminal where ``NO_COLOR`` (https://no-color.org) isn't set."""
    if os.environ.get("NO_COLOR") or not is_terminal(stream):
        return text
    return f"\033[1;{COLOURS[colour]}m{text}\033[0m"


def _understands_escapes() -> bool:
    """Always outside Windows; there, the console is asked to (Windows 10 and newer can)."""
    if sys.platform == "win32":  # pragma: no cover (Windows)
        import ctypes

        kernel = ctypes.windll.kernel32
        # -12 is stderr, which shares the console with stdout; 7: processed output, wrap, and escape sequences
        return bool(kernel.SetConsoleMode(kernel.GetStdHandle(-12), 7))
    return True


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

    Args:
        what: the work, as it stands at the head of the line.
        total: how much there is to do; None where nobody knows, until :meth:`finish`.
        unit: what is counted, with a blank before it; also as ``unit/s`` if ``rate``.
        every: seconds between lines where there is no terminal.
        rate: say how many a second.
    """

    def __init__(self, what: str, total: int | None, unit: str = "", every: float = 20.0, rate: bool = False) -> None:
        self.what, self.total, self.unit, self.every, self.rate = what, total, unit, every, rate
        self.done = 0
        self.start = self.last = time.monotonic()
        self.terminal = is_terminal(sys.stderr)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Count ``by`` more; draw when it is time."""
        self.done += by
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal else self.every) and not self.ended:
            return
        self.last = now
        spent = now - self.start
        line = f"{self._line(spent)}{'  ' + note if note else ''}"
        if self.terminal:
            print(f"{CLEAR}{line}", end="\n" if self.ended else "", file=sys.stderr, flush=True)
        elif spent > self.every or not self.ended:
            print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """There is no more to do than what was counted."""
        if self.total is None:
            self.total = self.done
            self.advance(0)

    @property
    def ended(self) -> bool:
        """Whether all is done."""
        return self.total is not None and self.done >= self.total

    def _line(self, spent: float) -> str:
        speed = f", {self.done / spent:.1f}{self.unit}/s" if self.rate and spent else ""
        if self.total is None:
            return f"{self.what}: {self.done}{self.unit}{speed}"
        share = 100 * self.done // self.total if self.total else 100
        left = spent / self.done * (self.total - self.done) if self.done else 0.0
        rest = f"{duration(left)} left" if self.done < self.total else f"took {duration(spent)}"
        return f"{self.what}: {self.done}/{self.total}{self.unit} ({share} %){speed}, {rest}"

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``, counting each when the next is asked for."""
        for item in items:
            yield item
            self.advance()
