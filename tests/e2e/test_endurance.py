"""The short forms of tests/endurance: what holds on any machine is judged, speed and sizes are not."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endurance.overloading import overload
from tests.endurance.soaking import soak
from tests.endurance.swapping import swap
from tests.support.servers.running import Running, serving


def test_load_with_bad_input_loses_nothing(server: Running, tmp_path: Path) -> None:
    """Half of the capacity: this machine may do something else as well."""
    told: list[str] = []
    report = soak(server, 2, seconds=30, share=0.5, bad=0.05, tell=told.append)
    print(report.text())
    assert not report.broken(), report.text()
    assert report.good["served"] > 100
    assert report.bad.answers["400"]
    report.write(tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["process"].split()[0] for row in rows} == {"java", "worker", "decoder"}
    assert all(float(row["pss"]) <= float(row["rss"]) and int(row["files"]) >= 3 for row in rows)


def test_overload_is_refused(server: Running) -> None:
    report = overload(server, 2, factor=4, seconds=10)
    print(report.text())
    assert not report.broken(), report.text()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Running]:
    """A server with one worker, whose versions may change."""
    with serving(tmp_path, "--workers", "1") as running:
        yield running


def test_swaps_and_scalings_lose_no_request(alone: Running) -> None:
    report = swap(alone, swaps=2, scalings=2)
    print(report.text())
    assert not report.broken(), report.text()
    assert {what: len(took) for what, took in report.seconds.items()} == dict.fromkeys(
        ("deploy", "roll back", "remove", "scale up", "scale down"), 2
    )
