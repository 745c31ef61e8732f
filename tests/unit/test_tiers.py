"""What ``scripts/test.py`` runs."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from scripts import test as command
from scripts.lib.paths import ROOT


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one test of each mark."""
    for name, mark in {"e2e/test_server.py": "slow", "e2e/test_time.py": "alone", "unit/test_topk.py": ""}.items():
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"pytestmark = pytest.mark.{mark}\n" if mark else "", encoding="utf-8")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    return tmp_path


def marks(run: list[str]) -> str:
    """The expression by which a run of pytest chooses tests."""
    return run[run.index("-m") + 1]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("arguments", [[], ["tests"], ["tests/e2e", "-x"], ["-x"]], ids=shlex.join)
def test_the_default_leaves_out_what_is_slow(arguments: list[str]) -> None:
    beside, alone = command.passes(False, 3, arguments)
    assert beside[0] == ("tests/e2e" if "tests/e2e" in arguments else "tests")
    assert alone[0] == "tests/e2e/test_time.py"  # no other file has a test that is alone
    assert (marks(beside), marks(alone)) == ("not slow and not alone", "not slow and alone")
    assert beside[beside.index("-n") + 1] == "3"
    assert "-n" not in alone
    for run in (beside, alone):
        assert ("-x" in run) == ("-x" in arguments)
        assert "--cov" not in run


@pytest.mark.usefixtures("root")
def test_where_nothing_is_alone_one_run_is_enough() -> None:
    (run,) = command.passes(False, 2, ["tests/unit"])
    assert (run[0], marks(run)) == ("tests/unit", "not slow and not alone")


@pytest.mark.usefixtures("root")
def test_coverage_is_that_of_both_runs() -> None:
    beside, alone = command.passes(True, 2, [])
    assert (marks(beside), marks(alone)) == ("not alone", "alone")
    assert "--cov-fail-under=0" in beside  # half of the tests cover less
    assert "--cov-append" in alone
    assert not [option for option in alone if option.startswith("--cov-fail-under")]


@pytest.mark.parametrize("arguments", [["tests/unit/test_topk.py"], ["-x", "tests/test_a.py::test_b"]], ids=shlex.join)
def test_what_is_named_runs_as_it_is(arguments: list[str]) -> None:
    assert command.passes(False, 2, arguments) == [arguments]


def test_what_it_does_not_know_goes_to_pytest() -> None:
    options = ["-x", "-k", "topk", "--all", "tests/unit", "--durations=3", "--jobs", "3", "--co"]
    args = command.build_parser().parse_args(options)
    assert args.pytest == ["-x", "-k", "topk", "tests/unit", "--durations=3", "--co"]
    assert (args.all, args.jobs) == (True, 3)


def test_the_judge_runs_everything() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "python3 scripts/test.py --all" in lines


@pytest.mark.parametrize(
    ("statuses", "expected"), [([0, 0], 0), ([0, 5], 0), ([1, 0], 1), ([5, 5], 5), ([0, 2], 2)], ids=str
)
@pytest.mark.usefixtures("root")
def test_one_failing_run_fails(statuses: list[int], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = list(statuses)

    class Done:
        """A run of pytest that has ended."""

        def __init__(self, *_command: object, **_options: object) -> None:
            self.returncode = left.pop(0)

    monkeypatch.setattr("subprocess.run", Done)
    assert command.main(argparse.Namespace(all=False, jobs=None, pytest=[])) == expected
    assert not left
