"""Memory for decoding follows from the control group; the groups are real ones."""

from __future__ import annotations

import subprocess
import sys

import psutil

from handler import memory
from scripts.lib.paths import ROOT
from tests.support.machine.control_groups import memory_group


def test_the_limit_is_the_groups_or_that_of_one_above() -> None:
    """What a process inside finds out; and what is used of it, but for files' pages, which can be given back."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from handler import memory\n"
        "taken = b'x' * 100_000_000\n"
        "print(memory.limit(), memory.available())"
    )
    with memory_group(512 * 2**20) as group:
        printed = subprocess.run(group.shell(sys.executable, "-c", code), capture_output=True, check=True, text=True)
    limit, available = map(int, printed.stdout.split())
    assert limit == 512 * 2**20
    assert 300e6 < available < limit - 100e6


def test_without_a_group_it_is_the_machines() -> None:
    assert memory.limit("0") == psutil.virtual_memory().total
    assert 0 < memory.available() <= psutil.virtual_memory().total


def test_all_processes_of_a_server_fit() -> None:
    """Java, workers and what each takes for a request are set aside; what is left is for pictures."""
    whole, base = memory.limit(), 300 * 2**20
    one, two = memory.left(base, 1), memory.left(base, 2)
    assert one - two == base + memory.REQUEST_BYTES
    assert one < 0.7 * whole - base
    assert memory.workers() == 1, "outside of TorchServe"


def test_workers_are_counted_among_the_processes_beside_this_one() -> None:
    """All that TorchServe started: of them two workers, and this one."""
    count = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from handler import memory; print(memory.workers())"
    frontend = (
        "import subprocess, sys\n"
        "wait = [sys.executable, '-c', 'input()']\n"
        "others = [[*wait, 'model_service_worker.py'], [*wait, '/ts/model_service_worker.py', '--port'], wait]\n"
        "started = [subprocess.Popen(other, stdin=subprocess.PIPE) for other in others]\n"
        f"print(subprocess.run([sys.executable, '-c', {count!r}], check=True, capture_output=True, text=True).stdout)\n"
        "[process.communicate(b'\\n') for process in started]\n"
    )
    printed = subprocess.run([sys.executable, "-c", frontend], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "2"
