"""What ``--contenders`` takes. Standard library only: the command's help needs nothing else."""

from __future__ import annotations

import argparse
from typing import NamedTuple

KINDS = ("ours", "stock", "ours-default", "stock-default", "bare", "flask", "fastapi", "litserve", "bentoml")
SCALABLE = ("ours", "stock", "bare", "fastapi", "litserve", "bentoml")
"""Those that take a number of workers, as in ``stock:2``."""


class Wanted(NamedTuple):
    """A contender as the command line names it: its kind, and the number of workers if one was given."""

    kind: str
    workers: int | None = None

    @property
    def name(self) -> str:
        """As it was written, such as ``ours`` or ``stock:2``."""
        return self.kind if self.workers is None else f"{self.kind}:{self.workers}"


def parse_contender(text: str) -> Wanted:
    """One contender, ``NAME`` or ``NAME:N``.

    Raises:
        argparse.ArgumentTypeError: it isn't one.
    """
    kind, colon, number = text.partition(":")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"unknown contender {text!r}, expected {', '.join(KINDS)}")
    if not colon:
        return Wanted(kind)
    if kind not in SCALABLE:
        raise argparse.ArgumentTypeError(
            f"{kind} takes no number of workers, got {text!r}; those that do are {', '.join(SCALABLE)}"
        )
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: the workers must be a whole number of at least 1, as in {kind}:2")
    return Wanted(kind, int(number))


def parse_contenders(text: str) -> tuple[Wanted, ...]:
    """Two or more different contenders, separated by commas.

    Raises:
        argparse.ArgumentTypeError: one is unknown, or they are no comparison.
    """
    wanted = tuple(parse_contender(part) for part in text.split(","))
    if len(set(wanted)) < max(2, len(wanted)):
        raise argparse.ArgumentTypeError(f"{text} isn't a comparison, expected two or more different contenders")
    return wanted
