"""Mutation testing (tests/endurance/mutation.py): the same mutants for a seed, and tests that can notice them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from cosmic_ray.commands import init
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, WorkerOutcome, WorkItem, WorkResult
from cosmic_ray.work_item import TestOutcome as Outcome  # pytest would take it for a test
from coverage import CoverageData

from scripts.lib.paths import ROOT
from tests.endurance import mutating
from tests.endurance.mutating import Mutants, Suite, sample

MODULE = Path("handler", "hold.py")


def test_a_seed_chooses_the_same_mutants_each_at_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with contextlib.closing(WorkDB(tmp_path / "session.sqlite", WorkDB.Mode.create)) as session:
        init([MODULE], session, {})
        everything = session.work_items
    chosen = sample(everything, 10, 7)
    assert len({(item.mutations[0].start_pos, item.mutations[0].end_pos) for item in chosen}) == 10
    assert sample(reversed(everything), 10, 7) == chosen != sample(everything, 10, 8)
    types = {item.mutations[0].operator_name for item in everything if "BitOr" in item.mutations[0].operator_name}
    assert types and not types & {item.mutations[0].operator_name for item in sample(everything, 10**6, 7)}


def test_tests_of_the_line_come_first_then_those_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CoverageData(str(tmp_path / "coverage"))
    for name, lines in (("far", [1]), ("slow", [7]), ("near", [7]), ("endless", [7])):
        data.set_context(f"tests/unit/test_a.py::{name}|run")
        data.add_lines({str(ROOT / MODULE): lines})
    data.write()
    times = {"far": 1, "slow": 3, "near": 2, "endless": 100}
    cases = (f'<testcase classname="tests.unit.test_a" name="{name}" time="{time}"/>' for name, time in times.items())
    about = f'<testcase classname="tests.unit.test_{MODULE.stem}" name="about" time="1"/>'  # runs none of its lines
    (tmp_path / "durations.xml").write_text(f"<suite>{''.join(cases)}{about}</suite>", encoding="utf-8")
    tests = Suite(tmp_path)
    far, near, slow = (f"tests/unit/test_a.py::{name}" for name in ("far", "near", "slow"))
    own = f"tests/unit/test_{MODULE.stem}.py::about"
    assert tests.of(MODULE, 6, 7) == [near, slow, own, far]
    assert tests.of(MODULE, 2, 2)[0] == own
    monkeypatch.setattr(mutating, "TESTS_SECONDS", 3.5)
    assert tests.of(MODULE, 7, 7) == [near, own]


@pytest.mark.parametrize(("survivors", "broken"), [(3, []), (4, ["80.0% of the mutants killed, at least 85% wanted"])])
def test_survivors_are_listed_and_judged(survivors: int, broken: list[str]) -> None:
    results = []
    for number in range(20):
        place = MutationSpec(MODULE, "core/NumberReplacer", 0, (number + 1, 0), (number + 1, 1))
        outcome = Outcome.SURVIVED if number < survivors else Outcome.KILLED
        output = "timeout" if number == 19 else "1 failed"
        diff = "--- \n+++ \n@@ -1 +1 @@\n-one\n+two"
        results.append((WorkItem(str(number), (place,)), WorkResult(WorkerOutcome.NORMAL, output, outcome, diff)))
    results.append((WorkItem("20", (place,)), WorkResult(WorkerOutcome.NORMAL, "", Outcome.INCOMPETENT, "")))
    report = Mutants(results)
    assert report.broken() == broken and not report.slow()
    text = report.text()
    assert f"{'all':<40}{21:>12}{19 - survivors:>12}{1:>12}{survivors:>12}{1:>12}" in text
    assert "survived: handler/hold.py:1 NumberReplacer\n@@ -1 +1 @@\n-one\n+two" in text
    assert text.count("survived: ") == survivors


@pytest.mark.parametrize(
    ("source", "possible"),
    [("x = 1", True), ("x = {&y}", False), ("x = y is 'a'", False)],
    ids=["good", "bad", "warned"],
)
def test_what_no_python_can_load_is_no_mutant(source: str, possible: bool) -> None:
    assert mutating._is_python(source) is possible
