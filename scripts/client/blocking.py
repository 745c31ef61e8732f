"""The blocking client: the asynchronous one, run by a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, TypeVar

from scripts.client.answers import Answer, P, Picture, Result
from scripts.client.asynchronous import CONCURRENCY, PATIENCE_S, TIMEOUT_S, AsyncDenseNetClient, window_size

T = TypeVar("T")
POLL_S = 0.2
"""Between looks at a Ctrl-C: on Windows a wait without a limit isn't interrupted."""


class DenseNetClient:
    """Sends pictures to one server, also from several threads. Use it in a ``with`` block, or :meth:`close` it.

    Arguments and errors are those of :class:`AsyncDenseNetClient`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:5000",
        token: str | None = None,
        timeout: float = TIMEOUT_S,
        patience: float = PATIENCE_S,
    ) -> None:
        self._client = AsyncDenseNetClient(url, token, timeout, patience)
        self.url = self._client.url
        self._loop = asyncio.new_event_loop()
        # a daemon: an answer that never comes doesn't keep the program from ending
        self._thread = threading.Thread(target=self._loop.run_forever, name="DenseNetClient", daemon=True)
        self._thread.start()

    def ping(self) -> None:
        """See :meth:`AsyncDenseNetClient.ping`."""
        self._run(self._client.ping())

    def predict(self, picture: Picture, topk: int | None = None) -> Answer:
        """See :meth:`AsyncDenseNetClient.predict`."""
        return self._run(self._client.predict(picture, topk))

    def predict_many(
        self,
        pictures: Iterable[P],
        topk: int | None = None,
        concurrency: int = CONCURRENCY,
        progress: Callable[[], object] = lambda: None,
    ) -> Iterator[Result[P]]:
        """See :meth:`AsyncDenseNetClient.predict_many`. ``pictures`` are taken in the caller's thread."""
        slots = asyncio.Semaphore(concurrency)
        window: deque[Future[Result[P]]] = deque()
        try:
            for picture in pictures:
                window.append(self._submit(self._client.result(picture, topk, slots)))
                while window and (window[0].done() or len(window) >= window_size(concurrency)):
                    yield _result(window[0])
                    window.popleft()
                    progress()
            while window:
                yield _result(window[0])
                window.popleft()
                progress()
        finally:
            for future in window:
                future.cancel()

    def close(self) -> None:
        """Close the connections; what is under way is given up."""
        if self._loop.is_closed():
            return
        self._run(_end(self._client))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> DenseNetClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = self._submit(coroutine)
        try:
            return _result(future)
        finally:
            future.cancel()


def _result(future: Future[T]) -> T:
    while not wait([future], timeout=POLL_S).done:
        pass
    return future.result()


async def _end(client: AsyncDenseNetClient) -> None:
    """Give up what is under way, and wait until it has let go of its connections."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await client.close()
    await asyncio.get_running_loop().shutdown_default_executor()
