"""The asynchronous client; the blocking one drives it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType

import httpx

from scripts.client.answers import Answer, ClientError, P, Picture, Refused, Result, Unavailable, Unreadable
from scripts.lib.error_form import error_of
from scripts.lib.paths import MODEL_NAME

FIRST_PAUSE_S = 0.5
"""Before the second attempt; each further pause is twice as long."""
LONGEST_PAUSE_S = 8.0
PATIENCE_S = 60.0
TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
CONCURRENCY = 8

BUSY = frozenset({429, 502, 503, 504})
"""Statuses that pass: too many requests, no worker, a proxy whose server restarts."""
FAULT = 500
MAX_FAULTS = 3
"""Attempts at a picture that is answered with 500."""
WORKER_DIED = "WorkerDied"
"""The type of the error of a request whose worker died; its status is 503."""
MAX_DEATHS = 2
"""Attempts at such a picture: once the worker may have been killed, twice the picture kills workers."""
UNUSABLE = frozenset({401, 403, 404, 405})
"""Statuses that every picture would get: a token is missing or has expired, or another server answers."""
INVALID_KEY = "InvalidKeyException"
"""TorchServe's word for a wrong token; its status is 400."""


class AsyncDenseNetClient:
    """Sends pictures to one server. Use it in an ``async with`` block, or :meth:`close` it.

    Args:
        url: inference address, e.g. ``http://127.0.0.1:5000``.
        token: TorchServe's inference token, None where tokens are off.
        timeout: seconds to wait for an answer; the server answers none after more than a minute.
        patience: seconds for which a picture is sent again while the server is busy, restarts or doesn't answer;
            0 for one attempt.

    Raises:
        ClientError: ``url`` is no address of a server.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:5000",
        token: str | None = None,
        timeout: float = TIMEOUT_S,
        patience: float = PATIENCE_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        if not self.url.startswith(("http://", "https://")):
            raise ClientError(f"received {url!r} as the server's address; expected one like http://127.0.0.1:5000")
        headers = {"Accept": "application/json", "Content-Type": "application/octet-stream"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S), pool=None),
                limits=httpx.Limits(max_connections=None),
            )
        except httpx.InvalidURL as error:
            raise ClientError(f"received {url!r} as the server's address: {error}") from None

    async def ping(self) -> None:
        """Make sure that a server answers, whatever it says; a worker need not be READY.

        Raises:
            Unavailable: none does.
        """
        try:
            await self._http.get("/ping", timeout=CONNECT_TIMEOUT_S)
        except httpx.TransportError as error:
            raise self._silent(error) from None

    async def predict(self, picture: Picture, topk: int | None = None) -> Answer:
        """The answer to one picture.

        While the server is busy or restarts it is asked again, with growing pauses: a prediction changes nothing,
        so asking twice is safe.

        Args:
            picture: path or content of a picture file.
            topk: how many classes to answer with, in ``Answer.top``.

        Raises:
            Unreadable: the file can't be read.
            Refused: the server doesn't take the picture, or ``topk``.
            Unavailable: the server couldn't be used for ``patience`` seconds.
        """
        content = picture if isinstance(picture, bytes) else await _read(Path(picture))
        parameters = {} if topk is None else {"topk": str(topk)}
        give_up = time.monotonic() + self.patience
        attempts = faults = deaths = 0
        while True:
            pause = pause_before_retry(attempts)
            attempts += 1
            problem: ClientError
            try:
                response = await self._http.post(f"/{MODEL_NAME}/predict", params=parameters, content=content)
            except httpx.TransportError as error:
                problem = self._silent(error)
            else:
                if response.is_success:
                    return self._answer(response)
                problem = self._problem(response)
                faults += response.status_code == FAULT
                deaths += isinstance(problem, Refused) and problem.type == WORKER_DIED
                final = response.status_code not in BUSY and not 0 < faults < MAX_FAULTS
                if final or deaths == MAX_DEATHS:
                    raise problem
                pause = max(pause, retry_after(response.headers.get("Retry-After", "")))
            if time.monotonic() + pause > give_up:
                raise problem
            await asyncio.sleep(pause)

    async def predict_many(
        self,
        pictures: Iterable[P],
        topk: int | None = None,
        concurrency: int = CONCURRENCY,
        progress: Callable[[], object] = lambda: None,
    ) -> AsyncIterator[Result[P]]:
        """A result for each picture, in order; a bad one doesn't end the others.

        Of ``pictures``, which may be endless, only the next few are held in memory.

        Args:
            pictures: paths or contents of picture files.
            topk: how many classes to answer with.
            concurrency: requests under way at once.
            progress: called after each result.

        Raises:
            Unavailable: the server couldn't be used for ``patience`` seconds; the results before are complete.
        """
        slots = asyncio.Semaphore(concurrency)
        window: deque[asyncio.Task[Result[P]]] = deque()
        source = iter(pictures)
        more = True
        try:
            while more or window:
                while more and len(window) < window_size(concurrency):
                    try:
                        window.append(asyncio.create_task(self.result(next(source), topk, slots)))
                    except StopIteration:
                        more = False
                if window:
                    yield await window[0]
                    window.popleft()
                    progress()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def result(self, picture: P, topk: int | None, slots: asyncio.Semaphore) -> Result[P]:
        """:meth:`predict` as one of many: what is wrong with this picture becomes its result.

        Args:
            picture: path or content of a picture file, which isn't read before there is a slot.
            topk: how many classes to answer with.
            slots: of which each request under way takes one.

        Raises:
            Unavailable: as :meth:`predict`.
        """
        async with slots:
            try:
                return Result(picture, await self.predict(picture, topk))
            except (Unreadable, Refused) as error:
                return Result(picture, error=error)

    def _silent(self, error: httpx.TransportError) -> Unavailable:
        return Unavailable(
            f"no server answers at {self.url} ({type(error).__name__}); start one with: python3 scripts/serve.py"
        )

    def _answer(self, response: httpx.Response) -> Answer:
        try:
            return Answer.from_json(response.json())
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Unavailable(
                f"{self.url} answered with {response.text[:80]!r}, which is no prediction; is it the inference address?"
            ) from None

    def _problem(self, response: httpx.Response) -> Refused | Unavailable:
        kind, message = error_of(response.text, response.reason_phrase)
        if (kind != WORKER_DIED and response.status_code in BUSY | UNUSABLE) or kind == INVALID_KEY:
            return Unavailable(f"{response.status_code}: {message}")
        return Refused(response.status_code, kind, message)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncDenseNetClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def window_size(concurrency: int) -> int:
    """Pictures that may be under way or wait for the one before them: twice as many as requests.

    With one that is sent again at the head of the queue the others go on for a while.
    """
    return 2 * concurrency


def pause_before_retry(attempt: int) -> float:
    """Seconds to wait after attempt number ``attempt`` (0 is the first) failed.

    They double from attempt to attempt; half of it is random, so that many clients don't come back in one moment.
    """
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 30))
    return random.uniform(longest / 2, longest)  # noqa: S311 (no secret)


def retry_after(value: str) -> float:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3): a number or a date; 0 without one."""
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


async def _read(path: Path) -> bytes:
    try:
        return await asyncio.to_thread(path.read_bytes)
    except (OSError, ValueError) as error:
        raise Unreadable(f"can't be read: {getattr(error, 'strerror', None) or error}") from None
