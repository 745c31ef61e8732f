"""Mutants of the handler, and whether the unit tests notice: cosmic-ray makes them, coverage says which tests can.

::

    handler/ ─ cosmic-ray ─▶ all mutants ─ seed ─▶ a sample, one a place ─▶ session (SQLite) ─▶ figures
    tests/unit ─ coverage ─▶ tests of each line ─▶ a process a mutant, in a copy of the checkout ──┘
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import gc
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cosmic_ray.commands import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult
from coverage import CoverageData

from scripts.lib.console import CommandError
from scripts.lib.paths import HANDLER, ROOT, VENV
from tests.endurance.promises import Report

LEAST = 0.85
"""Share of the mutants that the tests notice."""
TESTS_SECONDS = 60.0
"""Of tests a mutant, as long as they took without it: as many as that is enough for."""
PATIENCE = 5
"""How many times that long, and a minute, tests may take with it, of processor time."""
BUSY = 20
"""How many times as long it may be by the clock: others may take the processor."""
HOUR_S = 3600
_UNIT = ROOT / "tests" / "unit"
OWN = ("handler", "scripts", "tests")
"""What a process imports from its copy."""
LEFT_OUT = (".git", ".venv", ".run", ".cache", "__pycache__", "*.mar", ".*_cache", ".hypothesis")


class Suite:
    """The unit tests: the lines that each runs, and how long it takes.

    Args:
        folder: for what one run of all of them measures; it is used again as long as it is there.
    """

    def __init__(self, folder: Path) -> None:
        data, durations = folder / "coverage", folder / "durations.xml"
        if not durations.exists():
            _measure(data, durations)
        self.seconds: dict[str, float] = defaultdict(lambda: 1.0)
        for case in ElementTree.parse(durations).iter("testcase"):  # noqa: S314 (pytest wrote it)
            file = case.get("classname", "").replace(".", "/")
            self.seconds[f"{file}.py::{case.get('name')}"] = float(case.get("time", 1))
        self._tests: dict[str, set[str]] = defaultdict(set)
        for test in self.seconds:
            self._tests[_file(test)].add(test)
        self._data = CoverageData(str(data))
        self._data.read()

    def of(self, module: Path, first: int, last: int) -> list[str]:
        """Tests that run the module: those that run one of the lines ``first`` to ``last`` come first.

        What is computed as a module is imported, in a fixture of many tests, or in another process belongs to no test:
        those of the files that are about the module, and that import it, are there for that.
        """
        lines = self._lines(module)
        near = set().union(*(lines.get(line, ()) for line in range(first, last + 1)))
        own, importing = _files_about(module)
        tests = set().union(*lines.values(), *(self._tests[file] for file in own | importing))
        files: Counter[str] = Counter()
        for test in tests:
            files[_file(test)] += self.seconds[test]  # type: ignore[assignment]  # a Counter adds up any numbers
        chosen: list[str] = []
        left = TESTS_SECONDS
        for test in sorted(
            tests,
            key=lambda one: (
                *(one not in near, _file(one) not in own, _file(one) not in importing),
                *(files[_file(one)], self.seconds[one], one),
            ),
        ):
            if self.seconds[test] <= left:
                chosen.append(test)
                left -= self.seconds[test]
        return chosen

    @cache  # noqa: B019 (one object a run)
    def _lines(self, module: Path) -> dict[int, set[str]]:
        (file,) = (name for name in self._data.measured_files() if name.endswith(f"/{module}"))
        return {
            line: {context.rpartition("|")[0] for context in contexts if context}
            for line, contexts in self._data.contexts_by_lineno(file).items()
        }


@cache
def _files_about(module: Path) -> tuple[set[str], set[str]]:
    """Files of unit tests: that with the module's name, and those that import it."""
    name = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
    files = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in _UNIT.glob("test_*.py")}
    own = {file for file in files if file == f"tests/unit/test_{name.rpartition('.')[2]}.py"}
    package, _, last = name.rpartition(".")
    imports = re.compile(
        rf"^from {re.escape(name)} import|^from {re.escape(package)} import .*\b{last}\b", re.MULTILINE
    )
    return own, {file for file, text in files.items() if imports.search(text)}


def _file(test: str) -> str:
    return test.partition("::")[0]


def _measure(data: Path, durations: Path) -> None:
    options = ["-n", "auto", "--cov=handler", "--cov-context=test", "--cov-report=", "--cov-fail-under=0"]
    command = [sys.executable, "-m", "pytest", "-q", "tests/unit", *options, f"--junitxml={durations}.part"]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(data)}, check=False).returncode:
        raise CommandError("the unit tests fail as it is; mend that first")
    Path(f"{durations}.part").replace(durations)


@contextlib.contextmanager
def _copy() -> Iterator[Path]:
    """A copy of the checkout, with a temporary folder of its own."""
    with tempfile.TemporaryDirectory(prefix="densenet-mutation-") as folder:
        copy = Path(folder, "checkout")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if VENV.exists():
            (copy / VENV.name).symlink_to(VENV)
        yield copy


def open_session(file: Path, mutants: int, seed: int) -> WorkDB:
    """The session in ``file``, or a new one with a sample of so many mutants, each at another place of the code."""
    session = WorkDB(file, WorkDB.Mode.create)
    if not session.num_work_items:
        init(sorted(path.relative_to(ROOT) for path in HANDLER.rglob("*.py")), session, {})
        everything = session.work_items
        session.clear()
        session.add_work_items(sample(everything, mutants, seed))
    return session


def sample(items: Iterable[WorkItem], mutants: int, seed: int) -> list[WorkItem]:
    """So many of ``items``, each at another place, all of which have the same chance; none where a type stands."""
    unused = {path.relative_to(ROOT): list(_annotations(path)) for path in HANDLER.rglob("*.py")}
    places: dict[tuple[Any, ...], list[WorkItem]] = defaultdict(list)
    for item in items:
        (one,) = item.mutations
        if not any(begin <= one.start_pos < end for begin, end in unused[one.module_path]):
            places[one.module_path, one.start_pos, one.end_pos].append(item)
    chance = random.Random(seed)
    return [
        chance.choice(
            sorted(places[place], key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence))
        )
        for place in chance.sample(sorted(places), min(mutants, len(places)))
    ]


def _annotations(path: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where types stand, which nothing evaluates."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.expr):
                yield (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)


def _lines(mutation: MutationSpec) -> tuple[int, int]:
    """From the first line of its statement to its own."""
    line = mutation.start_pos[0]
    tree = ast.parse((ROOT / mutation.module_path).read_text(encoding="utf-8"))
    starts = (n.lineno for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or 0))
    return max(starts, default=line), line  # a decorator stands above its statement


def examine(
    session: WorkDB, items: Iterable[WorkItem], tests: Suite, processes: int, tell: Callable[[str], None]
) -> None:
    """Run the tests of mutants, and keep in the session what came out.

    Args:
        session: of the mutants.
        items: those to run.
        tests: to choose from.
        processes: at once.
        tell: gets a line a mutant.
    """
    import pytest

    pytest.main(["--version"])  # its plugins, and with the next line all libraries, are loaded once for all processes
    import_module("tests.unit.conftest")
    gc.freeze()  # no process looks at them, so that they share the memory

    with contextlib.ExitStack() as stack:
        copies: multiprocessing.queues.SimpleQueue[Path] = multiprocessing.SimpleQueue()
        for _ in range(processes):
            copies.put(stack.enter_context(_copy()))
        pool = stack.enter_context(
            ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _enter, (copies,))
        )
        stack.callback(pool.shutdown, cancel_futures=True)  # on Ctrl-C, too
        plans = [(item, tests.of(item.mutations[0].module_path, *_lines(item.mutations[0]))) for item in items]
        code, output = pool.submit(_run, list(dict.fromkeys(chain(*(plan for _, plan in plans)))), HOUR_S).result()
        if code:  # a mutant would seem to be killed
            raise CommandError(f"the tests fail in a copy of the checkout as it is:\n{output}")
        jobs = {}
        for item, plan in plans:
            limit = 60 + round(PATIENCE * sum(tests.seconds[test] for test in plan))
            jobs[pool.submit(_examined, item.mutations[0], plan, limit)] = item
        for number, job in enumerate(as_completed(jobs), 1):
            item, result = jobs[job], job.result()
            session.set_result(item.job_id, result)
            tell(f"{number}/{len(jobs)} {_place(item.mutations[0])} {result.test_outcome.value}")


def _enter(copies: Any) -> None:
    """A process of the pool works in a copy of its own, with its temporary folder."""
    copy = copies.get()
    os.chdir(copy)
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry != str(ROOT))]
    os.environ["TMPDIR"] = tempfile.tempdir = str(copy.parent)


def _examined(mutation: MutationSpec, tests: list[str], seconds: int) -> WorkResult:
    for compiled in mutation.module_path.parent.glob(f"__pycache__/{mutation.module_path.stem}.*"):
        compiled.unlink()  # it is told from the source by its time in seconds
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    with use_mutation(mutation.module_path, operator, mutation.occurrence) as (before, after):
        if _is_python(after):
            code, output = _run(tests, seconds)
            outcome = TestOutcome.KILLED if code != 0 else TestOutcome.SURVIVED
        else:
            output, outcome = "", TestOutcome.INCOMPETENT
    diff = "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))
    return WorkResult(WorkerOutcome.NORMAL, output, outcome, diff)


def _is_python(source: str) -> bool:
    """Whether it can be loaded at all, without a warning, which pytest takes for an error: else any test would do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _run(tests: list[str], seconds: int) -> tuple[int | None, str]:
    """The exit code of the tests, None where they took too long, and the end of what they said."""
    if not tests:
        return 0, "no test"
    with tempfile.TemporaryFile() as log:
        process = multiprocessing.get_context("fork").Process(target=_test, args=(tests, seconds, log.fileno()))
        process.start()
        process.join(BUSY * seconds)
        code = process.exitcode
        process.kill()
        with contextlib.suppress(OSError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # and whatever they left behind
        process.join()
        log.seek(0)
        late = code in (None, -signal.SIGXCPU)
        return code, "timeout" if late else log.read().decode(errors="replace")[-4000:]


def _test(tests: list[str], seconds: int, log: int) -> None:
    """Run tests in this process, by the modules of its working folder, and end it."""
    import resource

    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    os.setsid()
    for stream in (1, 2):
        os.dup2(log, stream)
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    order = {test: number for number, test in enumerate(tests)}

    class Chosen:
        @staticmethod
        def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
            items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    files = dict.fromkeys(map(_file, tests))
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files], plugins=[Chosen()])
    os._exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)


def _place(mutation: MutationSpec) -> str:
    return f"{mutation.module_path}:{mutation.start_pos[0]} {mutation.operator_name.rpartition('/')[2]}"


@dataclass
class Mutants(Report):
    """What became of each mutant of a session."""

    results: list[tuple[WorkItem, WorkResult]] = field(default_factory=list)

    def broken(self) -> list[str]:
        outcomes = Counter(result.test_outcome for _, result in self.results)
        killed, survived = outcomes[TestOutcome.KILLED], outcomes[TestOutcome.SURVIVED]
        share = killed / (killed + survived or 1)
        return [f"{share:.1%} of the mutants killed, at least {LEAST:.0%} wanted"] if share < LEAST else []

    def slow(self) -> list[str]:
        return []

    def figures(self) -> list[str]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for item, result in self.results:
            outcome = "timed out" if result.output == "timeout" else result.test_outcome.value
            for row in (str(item.mutations[0].module_path), "all"):
                counts[row].update(["mutants", outcome])
        columns = ("mutants", "killed", "timed out", "survived", "incompetent")
        lines = [f"{'':<40}" + "".join(f"{column:>12}" for column in columns)]
        lines += [
            f"{row:<40}" + "".join(f"{counts[row][c]:>12}" for c in columns)
            for row in sorted(counts, key=lambda r: (r == "all", r))
        ]
        for item, result in sorted(self.results, key=lambda one: _place(one[0].mutations[0])):
            if not result.is_killed:
                lines += [f"\nsurvived: {_place(item.mutations[0])}", *(result.diff or "").splitlines()[2:]]
        return lines
