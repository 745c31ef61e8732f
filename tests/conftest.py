"""For all tests: one thread a process, as a worker has; several would only wait for each other."""

from __future__ import annotations

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
