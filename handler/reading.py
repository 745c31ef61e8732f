"""The pictures of a request → what the network sees of them, in the worker or in a decoding process.

::

    ordinary ─▶ worker, while that takes little ─────────────────────┐
    all others ─▶ decoding process ─▶ within PATIENCE_S ─────────────┤─▶ views
                                   └▶ later (:mod:`handler.later`) ──┘

A request has one budget of processor time for all of its pictures together.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

import numpy as np

from handler import memory
from handler.errors import ImageTooComplex, RequestError, ServerBusy
from handler.isolation import BYTES_A_PIXEL, SPARE_BYTES, DecodingProcess, Share
from handler.later import PATIENCE_LEAST_S, PATIENCE_S, Lane, Result, wait
from handler.ordinary import ordinary
from handler.preprocessing import Preprocessing, View
from handler.responses import Response

WORKER_SECONDS = 1.0
"""Processor time of a request's decoding in the worker itself; what is left then goes to the decoding process."""
PROCESS_BYTES = 25 * 2**20 + SPARE_BYTES
"""What a decoding process has for itself."""
COUNT_SECONDS = 2.0
"""How long it is taken for granted that there are as many workers as there were."""


class PictureReader:
    """Reads the pictures of requests; nothing in them can take the worker down, or hold it.

    Args:
        preprocessing: resize and crop.
        max_pixels: width times height of a picture at most.
        max_seconds: processor time at most for decoding the pictures of one request.
        lane: where slow decoding goes on.
        threads: that read at once.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        max_pixels: int,
        max_seconds: float,
        lane: Lane | None = None,
        threads: int = 1,
    ) -> None:
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels
        self.max_seconds = max_seconds
        self._lane = lane
        self._threads = threads
        self._idle: list[DecodingProcess] = []
        self._base: int | None = None
        self._share = (0.0, Share(0, 0))

    def read(
        self,
        pictures: Sequence[bytes],
        side: int,
        deadline: float,
        instances: bool = False,
        later: bool = False,
        patience: float = PATIENCE_S,
    ) -> list[View] | Response:
        """What the network sees of each picture of a request, or the answer that puts the request off.

        Args:
            pictures: the files.
            side: px of the sides of the larger view; 0: none is wanted.
            deadline: when decoding must be over, by the monotonic clock.
            instances: an error says which of the pictures it is about.
            later: the request may be put off.
            patience: seconds after which it is.

        Raises:
            InvalidImage, ImageTooLarge: see :func:`handler.images.decode`; also if the decoder crashed, or took too
                much memory.
            ImageTooComplex: the budget won't do.
            ServerBusy: it can't be done now.
        """
        begin = time.thread_time()
        views: list[View] = []
        for number, data in enumerate(pictures):
            opened = ordinary(data, self.max_pixels) if time.thread_time() - begin < WORKER_SECONDS else None
            if opened is None:
                break
            try:
                views.append(self.preprocessing.view(opened, self.max_pixels, side))
            except RequestError as error:
                raise named(error, number, instances) from None
        if len(views) == len(pictures):
            return views
        spent = time.thread_time() - begin
        task = Decoding(self, pictures, views, side, self.max_seconds - spent, deadline, instances)
        task.start()
        if later and self._lane and not task.wait_begun(max(patience, PATIENCE_LEAST_S)):
            with contextlib.suppress(ServerBusy):
                self.give_back(DecodingProcess(self.preprocessing, self.max_pixels))  # for the next one, in good time
            return self._lane.defer(task)
        return unpacked(wait(task))

    def process(self) -> DecodingProcess:
        """A decoding process that nobody else has; ServerBusy if there can be none now."""
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
            process.close()
        return DecodingProcess(self.preprocessing, self.max_pixels)

    def give_back(self, process: DecodingProcess) -> None:
        """Let others have a process."""
        self._idle.append(process)

    def share(self) -> Share:
        """Memory for the pixels of a picture, so that all decoding processes of all workers together have enough."""
        since, share = self._share
        if not since or time.monotonic() - since > COUNT_SECONDS:
            if self._base is None:
                self._base = memory.own_bytes()
            workers = memory.workers()
            processes = workers * (self._threads + 1)  # one for each thread, and the lane's
            whole = max(memory.left(self._base, workers) - processes * PROCESS_BYTES, 0)
            most = self.max_pixels * BYTES_A_PIXEL
            small = whole // processes
            if small < most:
                small //= 4  # the rest is for one large picture at a time
            share = Share(min(small, most), min(whole - (processes - 1) * small, most))
            self._share = (time.monotonic(), share)
        return share

    def close(self) -> None:
        """End the decoding processes."""
        while self._idle:
            self._idle.pop().close()

    __del__ = close


class Decoding:
    """The pictures of a request that are decoded in a process of its own (a :class:`handler.later.Task`)."""

    stage = "slow-decode"

    def __init__(
        self,
        reader: PictureReader,
        pictures: Sequence[bytes],
        views: list[View],
        side: int,
        seconds: float,
        deadline: float,
        instances: bool,
    ) -> None:
        self.deadline = deadline
        self._reader, self._pictures, self._views = reader, pictures, views
        self._side, self._seconds, self._instances = side, seconds, instances
        self._lock = threading.Lock()
        self._begun, self._ended = threading.Event(), threading.Event()
        self._process: DecodingProcess | None = None
        self._low = False
        self._outcome: list[View] | Exception = []

    def start(self) -> None:
        """Begin, or begin again."""
        if self._process is not None:
            return
        process = self._reader.process()
        self._process = process
        if self._low:
            process.lower_priority()
        try:
            threading.Thread(target=self._run, args=(process,), name="decoding", daemon=True).start()
        except RuntimeError as error:  # no thread is left
            self._process = None
            self._reader.give_back(process)
            raise ServerBusy(
                f"the server can't decode this picture now ({error}); try again in a few seconds"
            ) from None

    def step_back(self) -> None:
        """Go on at low priority."""
        with self._lock:
            self._low = True
            if self._process is not None:
                self._process.lower_priority()

    def stop(self) -> None:
        """Leave off."""
        with self._lock:
            process, self._process = self._process, None
            self._ended.clear()
        if process is not None:
            process.end()

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        return self._ended.wait(seconds)

    def wait_begun(self, seconds: float) -> bool:
        """The same, but the start of a decoding process doesn't count."""
        self._begun.wait(max(self.deadline - time.monotonic(), 0))
        return self._ended.wait(seconds)

    def result(self) -> Result:
        """The views."""
        outcome, self._outcome = self._outcome, []
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return packed(outcome)
        finally:
            del outcome  # as in _run

    def _run(self, process: DecodingProcess) -> None:
        outcome: list[View] | Exception
        try:
            process.wait_until_ready()
            self._begun.set()
            outcome = self._decoded(process)
        except Exception as error:
            # without its traceback, whose frames would keep the picture until Python's collector runs
            outcome = error.with_traceback(None)
        with self._lock:
            if self._process is process:
                self._outcome = outcome
                kept = process.alive and not self._low
                if kept:
                    self._reader.give_back(process)
                self._ended.set()  # whoever waits finds the process, and doesn't start another
                if kept:
                    return
        process.close()

    def _decoded(self, process: DecodingProcess) -> list[View]:
        views, left = list(self._views), self._seconds
        for number in range(len(views), len(self._pictures)):
            data = self._pictures[number]
            try:
                if left <= 0:
                    raise ImageTooComplex("")
                view, used = process.decode(data, self._side, self._reader.share(), left)
            except ImageTooComplex as error:
                raise named(self._over(data) if number else error, number, self._instances) from None
            except RequestError as error:
                raise named(error, number, self._instances) from None
            left -= used
            views.append(view)
        return views

    def _over(self, data: bytes) -> ImageTooComplex:
        seconds = self._reader.max_seconds
        return ImageTooComplex(
            f"received {len(self._pictures)} pictures that take more than {seconds:.0f} s of processor time to decode, "
            f"which is what one request may take; it was over at this one, of {len(data):,} bytes: send fewer in a "
            "request, or save them anew with an ordinary program"
        )


def named(error: RequestError, number: int, instances: bool) -> RequestError:
    """An error about one picture of several says which."""
    return type(error)(f"instance {number}: {error}") if instances else error


def packed(views: Sequence[View]) -> Result:
    """Views as arrays: ``arrays`` (N, crop, crop, 3), ``enlarged`` (N, side, side, 3) and ``sizes`` (N, 2)."""
    return {
        "arrays": np.stack([view.array for view in views]),
        "enlarged": np.stack([view.enlarged for view in views]),
        "sizes": np.array([view.size for view in views]),
    }


def unpacked(result: Result) -> list[View]:
    """The views in :func:`packed` arrays."""
    each = zip(result["arrays"], result["enlarged"], result["sizes"].tolist())
    return [View(array, enlarged, (width, height)) for array, enlarged, (width, height) in each]
