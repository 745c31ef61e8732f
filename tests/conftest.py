"""For all tests: one thread a process, as a worker has; several would only wait for each other."""

from __future__ import annotations

import os
from typing import Any

import torch

from tests.seeds import VARIABLE, fuzz_seed

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The seed at the end of every run, also of one with -q."""
    terminalreporter.write_line(f"fuzzing: repeat it with {VARIABLE}={fuzz_seed()}")
