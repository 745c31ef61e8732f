"""Slow work that holds no worker: decoding that takes long, and integrated gradients.

::

    worker ─ "later: ticket" ─▶ frontend (DeferredJob.java), which keeps the request and looks at the ticket
      └ process at low priority ─▶ file of the ticket ─▶ request and ticket again, to any worker ─▶ answer

TorchServe gives a worker its next request when it has answered the last one. A request that takes
longer than ``PATIENCE_S`` is therefore answered with a ticket, where the frontend says that it knows
what to do with one; the worker goes on, and what is slow comes to its end in a process of its own,
one a worker. A ticket is a file in the server's temporary folder: empty until there is a result, and
gone when nobody waits for it any more. Its name can't be guessed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from handler import errors
from handler.body import header
from handler.errors import RequestError, ServerBusy
from handler.responses import Response, error_response

logger = logging.getLogger(__name__)

HEADER = "X-Densenet-Later"
"""Of a request: ``MAY``, or the name of a ticket; of an answer: the path of a ticket, and seconds that it may take."""
MAY = "may"
OUTCOME = "later"
"""Of an answer that isn't one yet."""
PREFIX = "later-"
PATIENCE_S = 0.3
"""How long a worker waits for slow work before it goes on; other formats than JPEG and PNG take less, as a rule."""
PATIENCE_LEAST_S = 0.05
"""The same for each further request of a batch."""
MAX_WAITING = 4
"""Requests that wait at one worker for slow work to begin; more are answered with 503."""
GRACE_S = 2
"""How long after a task's deadline its result may still come, before it counts as lost."""
POLL_S = 0.1
ABANDONED_S = 300
"""After this time nobody comes for a ticket any more."""

Result = dict[str, npt.NDArray[Any]]


class Task(Protocol):
    """Slow work that runs in a process."""

    stage: str
    """Its name in the metrics."""
    deadline: float
    """When it must be over, by the monotonic clock."""

    def start(self) -> None:
        """Begin, or begin again after :meth:`stop`; ServerBusy if that can't be now."""

    def step_back(self) -> None:
        """Go on at low priority, or begin so."""

    def stop(self) -> None:
        """Leave off, if it runs."""

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""

    def result(self) -> Result:
        """What came out; RequestError if that is the request's fault."""


class Lane:
    """Where the slow work of one worker goes on, one task at a time.

    Args:
        observe: is told each task's stage and seconds from its deferral to its end.
    """

    def __init__(self, observe: Callable[[str, float], None]) -> None:
        self._observe = observe
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[tuple[Path, Task, float]] = queue.SimpleQueue()
        self._count = 0
        threading.Thread(target=self._work, name="slow work", daemon=True).start()

    def defer(self, task: Task) -> Response:
        """The answer that puts a running task off; it goes on here, or waits its turn.

        Raises:
            ServerBusy: too many wait. The task is stopped.
        """
        with self._lock:
            place = self._count
            if place <= MAX_WAITING:
                self._count += 1
        try:
            if place > MAX_WAITING:
                raise ServerBusy("the server works on other slow requests; try again in a few seconds", slow=True)
            ticket = _new_ticket()
        except ServerBusy:
            task.stop()
            raise
        except OSError as error:
            self._done()
            task.stop()
            raise ServerBusy(f"the server can't put this request off ({error.strerror}); try again later") from None
        if place:
            task.stop()
        task.step_back()
        self._tasks.put((ticket, task, time.monotonic()))
        seconds = max(task.deadline - time.monotonic(), 0) + GRACE_S
        busy = error_response(ServerBusy("the request takes long; its answer comes later"))
        return Response(
            busy.status, busy.phrase, busy.content_type, busy.body, OUTCOME, {HEADER: f"{ticket} {seconds:.0f}"}
        )

    def finish(self, seconds: float) -> None:
        """Wait until nothing is under way here, at most so many seconds."""
        end = time.monotonic() + seconds
        while self._count and time.monotonic() < end:
            time.sleep(POLL_S)

    def _done(self) -> None:
        with self._lock:
            self._count -= 1

    def _work(self) -> None:
        while True:
            ticket, task, begin = self._tasks.get()
            try:
                _write(ticket, _outcome(task, ticket.exists))
                self._observe(task.stage, time.monotonic() - begin)
            except Exception:
                logger.exception("slow work failed")
                with contextlib.suppress(OSError):
                    ticket.unlink()  # the request is answered with 503
            finally:
                self._done()


def wait(task: Task, wanted: Callable[[], bool] = lambda: True) -> Result:
    """The result of a task.

    Args:
        task: it runs, or is to begin.
        wanted: whether anybody still waits for it.

    Raises:
        RequestError: what is wrong with the request; ServerBusy if the task took too long.
    """
    while True:
        late = time.monotonic() > task.deadline
        if late or not wanted():
            task.stop()
            raise ServerBusy("the server has too much to do for so slow a request; try again later", slow=True)
        task.start()
        if task.wait(POLL_S):
            return task.result()


def _outcome(task: Task, wanted: Callable[[], bool]) -> Result:
    try:
        return wait(task, wanted)
    except RequestError as error:
        return {"error": np.array([error.type, str(error)])}


def may_defer(headers: Mapping[str, Any]) -> bool:
    """Whether the frontend knows what to do with a ticket."""
    return bool(header(headers, HEADER))


def taken(headers: Mapping[str, Any]) -> Result | None:
    """The result for which a request comes back; None if it comes for the first time.

    Raises:
        RequestError: what was found to be wrong with the request; ServerBusy if the result was lost.
    """
    name = header(headers, HEADER)
    if not re.fullmatch(PREFIX + "[0-9a-f]{32}", name):
        return None
    ticket = _folder() / name
    try:
        if hasattr(os, "getuid") and ticket.stat().st_uid != os.getuid():
            return None
        with np.load(ticket, allow_pickle=False) as file:
            result = dict(file)
        ticket.unlink()
    except (OSError, ValueError, EOFError):  # its worker died, or there was no space
        with contextlib.suppress(OSError):
            ticket.unlink()
        raise ServerBusy("the work on this request was lost; try again", slow=True) from None
    if "error" in result:
        kind, message = map(str, result["error"])
        raise ServerBusy(message, slow=True) if kind == ServerBusy.__name__ else getattr(errors, kind)(message)
    return result


def _folder() -> Path:
    return Path(tempfile.gettempdir())


def _new_ticket() -> Path:
    """A ticket, empty; those that were forgotten are removed."""
    for old in _folder().glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > ABANDONED_S:
                old.unlink()
    ticket = _folder() / f"{PREFIX}{secrets.token_hex(16)}"
    ticket.touch(mode=0o600, exist_ok=False)
    return ticket


def _write(ticket: Path, result: Result) -> None:
    """Put a result where an empty ticket is; nowhere if the ticket is gone."""
    part = ticket.with_name(ticket.name + ".part")
    part.touch(mode=0o600)
    with part.open("wb") as file:
        np.savez(file, **result)  # type: ignore[arg-type]
    if ticket.exists():
        part.replace(ticket)
    else:
        part.unlink()
