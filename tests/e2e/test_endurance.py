"""The short forms of tests/endurance: what holds on any machine is judged, speed and sizes are not.

Those of fuzz.py, kill_workers.py and limits.py are in test_hostile.py, test_faults.py, deployment/test_limits.py.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import pytest

from tests.endurance import overload, soak
from tests.endurance.command import options
from tests.support.servers.running import Running, command, command_by

pytestmark = pytest.mark.slow

TIMEOUT_S = 560
"""A command that is ended leaves its server behind."""


@pytest.mark.alone
def test_load_with_bad_input_loses_nothing(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the capacity: this machine may do something else as well."""
    monkeypatch.setattr(soak, "SHARE", 0.5)
    samples = tmp_path / "samples.csv"
    report = soak.judge(server, options(soak.add_options, "--minutes", "0.5", "--csv", str(samples)))
    print(report.text())
    assert not report.broken(), report.text()
    assert report.good["served"] > 100
    assert report.bad.answers["400"]
    with samples.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["process"].split()[0] for row in rows} == {"java", "worker", "decoder"}
    assert all(float(row["pss"]) <= float(row["rss"]) and int(row["files"]) >= 3 for row in rows)


@pytest.mark.alone
def test_overload_is_refused(server: Running) -> None:
    report = overload.judge(server, options(overload.add_options, "--seconds", "10"))
    print(report.text())
    assert not report.broken(), report.text()


def test_swaps_and_scalings_lose_no_request() -> None:
    """As a command: with a server of its own, figures, an exit code."""
    swaps = ("../tests/endurance/swaps.py", "--swaps", "2", "--scalings", "2")
    done = command_by(lambda *run: list(run), *swaps, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("deploy", "roll back", "remove", "scale up", "scale down"):
        assert f"2 × {what}: " in done.stdout
    assert done.stdout.endswith("\n0 promises broken\n")


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris has no wheel for this system or Python")
def test_the_parser_is_fuzzed(tmp_path: Path) -> None:
    done = command("../tests/endurance/fuzz_coverage.py", "--inputs", "300", "--corpus", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert runs is not None and int(runs[1]) >= 300, "its samples may be more"
    assert len(list(tmp_path.glob("sample-*"))) > 20
