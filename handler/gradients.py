"""Integrated gradients in a process of their own: seconds of work that no prediction waits for.

Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017. They need the network in PyTorch, float32, which
the process loads; it ends with its picture, so that its memory is taken for that long only: that for a large picture.
A server computes one at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from handler import memory
from handler.card import ModelCard
from handler.errors import ServerBusy
from handler.isolation import LARGE_LOCK, LOW_PRIORITY, go_first, only_one, start
from handler.later import Result
from handler.preprocessing import Preprocessing, View
from handler.reading import packed

STEPS = 24
"""Points on the way from the mean colour to the picture at which the gradients are taken."""
STEPS_AT_ONCE = 4
"""Of them, how many are computed in one batch: more need more memory and are no faster on a CPU."""
MEMORY_BYTES = 900 * 2**20
"""What the process takes at most (DenseNet-201; DenseNet-121 takes 0.5 GB)."""
SECONDS = 50.0
"""How long it may take by the clock, its wait for a core included; below ``responseTimeout``."""
LOCK = "integrated-gradients.lock"
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from handler.gradients import serve; serve(*sys.argv[2:])"


def integrated_gradients(
    network: Any, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8], target: int, device: Any
) -> npt.NDArray[np.float32]:
    """What each pixel speaks for a class, (crop, crop), 0 or more; what speaks against it is 0.

    Args:
        network: in PyTorch.
        preprocessing: of its model.
        pixels: (crop, crop, 3), 0 to 255.
        target: index of the class.
        device: of the network.
    """
    import torch

    image = preprocessing.to_tensor(pixels[None]).to(device)  # (1, 3, crop, crop); 0 is the mean colour
    places, weights = np.polynomial.legendre.leggauss(STEPS)  # of -1 to 1
    total = torch.zeros_like(image)
    for at in range(0, STEPS, STEPS_AT_ONCE):
        each = slice(at, at + STEPS_AT_ONCE)
        place, weight = (torch.tensor(a[each] / 2, dtype=image.dtype, device=device) for a in (places + 1, weights))
        points = (image * place.view(-1, 1, 1, 1)).requires_grad_()
        (gradients,) = torch.autograd.grad(network(points)[:, target].sum(), points)
        total += (gradients * weight.view(-1, 1, 1, 1)).sum(0, keepdim=True)
    heat: npt.NDArray[np.float32] = (image * total)[0].sum(0).clamp(min=0).float().cpu().numpy()  # (crop, crop)
    return heat


class Gradients:
    """One picture's integrated gradients, in a process (a :class:`handler.later.Task`).

    Args:
        card, weights: the model.
        view: the picture.
        target: index of the class.
        deadline: when it must be over, by the monotonic clock.
    """

    stage = "integrated-gradients"

    def __init__(self, card: ModelCard, weights: Path, view: View, target: int, deadline: float) -> None:
        self.deadline = deadline
        self._settings = (json.dumps(card.to_dict()), str(weights), str(target))
        self._view = view
        self._process: subprocess.Popen[bytes] | None = None
        self._output = b""
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Begin.

        Raises:
            ServerBusy: another one is under way at this server, or there is no memory for it.
        """
        if self._process is not None:
            return
        if memory.available() < MEMORY_BYTES:
            raise ServerBusy(
                f"integrated gradients take up to {MEMORY_BYTES / 1e6:.0f} MB of memory, which aren't free now; try "
                "again later, or ask for grad-cam"
            )
        try:
            with only_one(LOCK, wait=False) as one, only_one(LARGE_LOCK, wait=False) as large:
                held = () if sys.platform == "win32" else (one, large)
                self._process = start(_CODE, *self._settings, pass_fds=held)
        except OSError:
            raise ServerBusy(
                "the server computes one explanation by integrated gradients at a time, and one, or a large picture, "
                "is under way; try again in some seconds, or ask for grad-cam"
            ) from None
        self._reader = threading.Thread(target=self._communicate, args=(self._process,), name="gradients", daemon=True)
        try:
            self._reader.start()
        except RuntimeError as error:  # no thread is left
            self._reader = None
            self.stop()
            raise ServerBusy(f"the server can't explain this picture now ({error}); try again later") from None

    def step_back(self) -> None:
        """It began so."""

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        assert self._reader is not None
        self._reader.join(seconds)
        return not self._reader.is_alive()

    def result(self) -> Result:
        """``heat`` (crop, crop) float32, and the picture.

        Raises:
            ServerBusy: the process ended without a result.
        """
        assert self._process is not None
        size = self._view.array.shape[:2]
        if self._process.wait() or len(self._output) != 4 * size[0] * size[1]:
            raise ServerBusy(
                f"the process that computes integrated gradients ended with {self._process.returncode} (-9: the memory "
                "ran out); try again later, or ask for grad-cam",
                slow=True,
            )
        return {**packed([self._view]), "heat": np.frombuffer(self._output, np.float32).reshape(size)}

    def _communicate(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            self._output = process.communicate(self._view.array.tobytes())[0]


def serve(card: str, weights: str, target: str) -> NoReturn:
    """The process: pixels from standard input, the heat to standard output."""
    target_file = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library may print is no answer
    go_first()
    if hasattr(os, "nice"):
        os.nice(LOW_PRIORITY)
    import torch

    from handler.network import load_network

    chosen = ModelCard.from_dict(json.loads(card))
    torch.set_num_threads(1)
    device = torch.device("cpu")
    network = load_network(chosen, Path(weights), device)
    pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(chosen.crop, chosen.crop, 3)
    heat = integrated_gradients(network, Preprocessing.of(chosen), pixels, int(target), device)
    target_file.write(heat.astype(np.float32).tobytes())
    target_file.flush()
    sys.exit(0)
