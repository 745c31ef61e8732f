"""The command lines of all commands: help, wrong use, and that neither needs a package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.paths import ROOT
from tests.support.servers.running import called

SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.py") if path.name != "__init__.py")
LONG = sorted(path for path in (ROOT / "tests" / "endurance").glob("*.py") if "__main__" in path.read_text("utf-8"))
"""The commands of tests/endurance; what lies beside them are their engines."""
COMMANDS = [*SCRIPTS, *LONG]
WRONG = {"test.py": "--jobs"}
"""A wrong use of a command, where it isn't an unknown flag: those of test.py are pytest's."""
WITHOUT_PACKAGES = """
import json, os, runpy, sys
codes = []
wrong = json.loads(sys.argv[1])
for path in sys.argv[2:]:
    for flag in ("--help", wrong.get(os.path.basename(path), "--no-such-flag")):
        sys.argv = [path, flag]
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            codes.append(ended.code)
print(json.dumps(codes), file=sys.stderr)
"""


def test_the_commands_are_found() -> None:
    assert len(SCRIPTS) >= 18
    assert [path.stem for path in LONG] == [
        *("fuzz", "fuzz_coverage", "kill_workers", "limits", "mutation", "neighbours", "overload", "soak", "swaps"),
    ]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_says_what_it_does(path: Path) -> None:
    told = called(str(path), "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"usage: {path.name} ")
    assert f"python3 {path.relative_to(ROOT)}" in told.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_wrong_use_ends_with_2(path: Path) -> None:
    told = called(str(path), WRONG.get(path.name, "--no-such-flag"))
    assert (told.returncode, told.stdout) == (2, "")
    assert f"{path.name}: error: " in told.stderr


def test_help_needs_no_package() -> None:
    """One process for all, in which there are none: help comes at once, and before the set-up."""
    isolated = [sys.executable, "-S", "-c", WITHOUT_PACKAGES, json.dumps(WRONG), *map(str, COMMANDS)]
    done = subprocess.run(isolated, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == [0, 2] * len(COMMANDS)
    assert done.stdout.count("usage: ") >= len(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "how many workers? give a number (scale.py 4), or --min and --max"),
        (["--min", "3", "--max", "2"], "at least 3 and at most 2 workers contradict each other"),
        (["0"], "argument N: 0 is out of range, expected at least 1"),
    ],
    ids=["nothing", "contradiction", "zero"],
)
def test_scale_asks_for_a_number(arguments: list[str], message: str) -> None:
    told = called("scale.py", *arguments)
    assert told.returncode == 2
    assert message in told.stderr
