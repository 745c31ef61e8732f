"""What a test of endurance found: figures, and the promises that weren't kept."""

from __future__ import annotations

from abc import ABC, abstractmethod

SHOWN = 20
"""Broken promises that are told one by one."""


class Report(ABC):
    """Figures and promises. ``broken`` is judged everywhere, ``slow`` only where the machine does nothing else."""

    @abstractmethod
    def figures(self) -> list[str]:
        """A line for each figure."""

    @abstractmethod
    def broken(self) -> list[str]:
        """A sentence for each promise that wasn't kept, however fast the machine is."""

    @abstractmethod
    def slow(self) -> list[str]:
        """A sentence for each promise of speed or size that wasn't kept."""

    def text(self) -> str:
        """Figures and broken promises, a line each."""
        found = [*self.broken(), *self.slow()]
        return "\n".join(
            [*self.figures(), *(f"BROKEN: {one}" for one in found[:SHOWN]), f"{len(found)} promises broken"]
        )
