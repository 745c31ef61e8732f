"""What ``scripts/test.py`` runs."""

from __future__ import annotations

import argparse
import shlex

import pytest

from scripts import test as command
from scripts.lib.paths import ROOT


def marks(run: list[str]) -> str:
    """The expression by which a run of pytest chooses tests."""
    return run[run.index("-m") + 1] if "-m" in run else ""


@pytest.mark.parametrize("arguments", [[], ["tests/unit"], ["tests/unit", "-x"]], ids=shlex.join)
def test_the_default_leaves_out_what_is_slow(arguments: list[str]) -> None:
    beside, alone = command.passes(False, 2, arguments)
    assert (marks(beside), marks(alone)) == ("not slow and not alone", "not slow and alone")
    assert beside[beside.index("-n") + 1] == "2"
    assert "-n" not in alone
    for run in (beside, alone):
        assert run[: max(1, len(arguments))] == (arguments or ["tests"])
        assert "--cov" not in run


def test_everything_is_measured_as_a_whole() -> None:
    beside, alone = command.passes(True, 2, [])
    assert (marks(beside), marks(alone)) == ("not alone", "alone")
    assert "--cov-fail-under=0" in beside  # half of the tests cover less
    assert "--cov-append" in alone
    assert not [option for option in alone if option.startswith("--cov-fail-under")]


@pytest.mark.parametrize(
    "named", ["tests/unit/test_topk.py", "tests/unit/test_topk.py::test_ties", "tests/unit/test_topk.py -k a"]
)
def test_what_is_named_runs_as_it_is(named: str) -> None:
    assert command.passes(False, 2, shlex.split(named)) == [shlex.split(named)]


def test_the_judge_runs_everything() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "python3 scripts/test.py --all" in lines


@pytest.mark.parametrize(
    ("statuses", "expected"), [([0, 0], 0), ([0, 5], 0), ([1, 0], 1), ([5, 5], 5), ([0, 2], 2)], ids=str
)
def test_one_failing_run_fails(statuses: list[int], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = list(statuses)

    class Done:
        def __init__(self, *command: object, **options: object) -> None:
            self.returncode = left.pop(0)

    monkeypatch.setattr("subprocess.run", Done)
    assert command.main(argparse.Namespace(all=False, jobs=None, pytest=[])) == expected
    assert not left
