"""The seed of a run of fuzzing: from the environment, to repeat a run, or from the clock."""

from __future__ import annotations

import os
import time
from functools import cache

VARIABLE = "DENSENET_FUZZ_SEED"


@cache
def fuzz_seed() -> int:
    """The seed of this run, its processes included; whoever uses it prints it."""
    return int(os.environ.setdefault(VARIABLE, str(int(time.time()))))
