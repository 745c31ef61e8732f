"""Client of the inference API: pictures in files → predictions, several at a time, in order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from scripts.lib.console import CommandError

RETRIES = 4
BACK_OFF_S = 0.5
TIMEOUT_S = 120


@dataclass(frozen=True)
class Result:
    """The answer to one picture: ``answer`` as the server gave it, or ``error`` in words."""

    path: Path
    answer: dict[str, Any] | None = None
    error: str = ""


class Client:
    """Sends pictures to one server.

    Args:
        url: inference address, e.g. ``http://127.0.0.1:5000``.
        token: TorchServe's inference token, None where tokens are off.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._local = threading.local()
        self._sessions: list[requests.Session] = []

    def predict(self, picture: bytes, topk: int | None = None) -> dict[str, Any]:
        """The answer to one picture.

        A server that is busy or restarting (503, no connection) is asked again, with growing
        pauses: a prediction changes nothing, so asking twice is safe.

        Args:
            picture: the bytes of a picture file.
            topk: how many classes to answer with.

        Raises:
            CommandError: the server refuses the picture, or can't be reached.
        """
        address = f"{self.url}/densenet/predict"
        parameters = {} if topk is None else {"topk": str(topk)}
        headers = {**self.headers, "Accept": "application/json", "Content-Type": "application/octet-stream"}
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(BACK_OFF_S * 2 ** (attempt - 1))
            try:
                response = self._session().post(
                    address, params=parameters, data=picture, headers=headers, timeout=TIMEOUT_S
                )
            except requests.RequestException as error:
                problem = f"no server answers at {self.url} ({type(error).__name__}); start one with scripts/serve.py"
                continue
            if response.ok:
                answer: dict[str, Any] = response.json()
                return answer
            problem = f"{response.status_code}: {error_message(response)}"
            if response.status_code not in (429, 502, 503, 504):
                break
        raise CommandError(problem)

    def predict_files(self, paths: Sequence[Path], topk: int | None, concurrency: int) -> Iterator[Result]:
        """A result for each file, in the order of ``paths``; a bad file doesn't end the others.

        Args:
            paths: picture files.
            topk: how many classes to answer with.
            concurrency: requests under way at once.
        """

        def one(path: Path) -> Result:
            try:
                return Result(path, self.predict(path.read_bytes(), topk))
            except OSError as error:
                return Result(path, error=f"can't be read: {error.strerror or error}")
            except CommandError as error:
                return Result(path, error=str(error))

        with ThreadPoolExecutor(max_workers=concurrency) as pool:
            yield from pool.map(one, paths)

    def _session(self) -> requests.Session:
        """One connection pool a thread: sessions aren't meant to be shared."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            self._sessions.append(session)
        return session

    def close(self) -> None:
        """Close the connections."""
        for session in self._sessions:
            session.close()


def inference_token(port: int) -> str | None:
    """The inference token: of the variable ``DENSENET_TOKEN``, or of the server that runs on ``port`` here."""
    from scripts.lib.server import find_server, read_token

    if os.environ.get("DENSENET_TOKEN"):
        return os.environ["DENSENET_TOKEN"]
    server = find_server(port)
    return read_token(server.folder, "inference") if server and server.token else None


def error_message(response: requests.Response) -> str:
    """What an answer that isn't 2xx says: the message of TorchServe's error form, else its text or reason."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:200] or response.reason
