"""Versions and workers that change under load."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.endurance.promises import Report
from tests.support.clients.load import load
from tests.support.servers.running import Running, command
from tests.support.servers.versions import NEW_LABEL, write_golden, write_new_version


@dataclass
class Swaps(Report):
    """Answers by status, labels, and the seconds that each command took, by what it did."""

    answers: Counter[int | str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def figures(self) -> list[str]:
        lines = [f"{self.answers.total():,} requests, answered with {dict(self.answers)}; labels {dict(self.labels)}"]
        return lines + [
            f"{len(took)} × {what}: {median(took):.1f} s (median), {max(took):.1f} s (max)"
            for what, took in self.seconds.items()
        ]

    def broken(self) -> list[str]:
        lost = {outcome: count for outcome, count in self.answers.items() if outcome != 200}
        return [*self.problems, *(f"{count} requests ended with {outcome}" for outcome, count in lost.items())]

    def slow(self) -> list[str]:
        return []

    def run(self, what: str, server: Running, *arguments: str) -> None:
        """A command of the project that is to succeed."""
        begun = time.monotonic()
        result = command(*arguments, "--port", str(server.port))
        self.seconds.setdefault(what, []).append(time.monotonic() - begun)
        if result.returncode:
            self.problems.append(f"{what}: {result.stderr.strip()[-500:]}")


def swap(server: Running, swaps: int, scalings: int, clients: int = 3) -> Swaps:
    """Deploy, roll back and remove a version, and scale up and down, as often, under load.

    Args:
        server: with one worker.
        swaps: times that a version 2.0 comes and goes.
        scalings: times that a second worker does.
        clients: that send requests all the time.
    """
    report = Swaps()
    archive = write_new_version(server.model_store)
    with tempfile.TemporaryDirectory() as folder, load(server.predictions, clients) as running:
        (label,) = running.labels
        golden = write_golden(Path(folder), NEW_LABEL + label)
        for _ in range(swaps):
            report.run("deploy", server, "deploy.py", str(archive), "--golden", golden)
            running.wait_for(clients)
            report.run("roll back", server, "deploy.py", "--rollback")
            running.wait_for(clients)
            report.run("remove", server, "deploy.py", "--remove", "2.0")
        for _ in range(scalings):
            report.run("scale up", server, "scale.py", "2")
            report.run("scale down", server, "scale.py", "1")
    report.answers, report.labels = Counter(running.answers), running.labels
    if set(report.labels) != {label, NEW_LABEL + label}:
        report.problems.append(f"labels were {dict(report.labels)}, expected some of both versions")
    return report
