"""TorchServe's management API: what is served, by how many workers; and scaling."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from scripts.lib.console import CommandError
from scripts.lib.error_form import error_of
from scripts.lib.paths import MODEL_NAME

if TYPE_CHECKING:
    from handler.card import ModelCard

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Worker:
    """One worker process: ``status`` is TorchServe's word, READY when it answers; memory in bytes."""

    id: str
    status: str
    pid: int
    memory: int


@dataclass(frozen=True)
class ModelStatus:
    """What the management API says of one version of the model; ``archive`` is its file in the model store."""

    version: str
    archive: str
    workers: list[Worker]
    min_workers: int
    max_workers: int

    @property
    def ready(self) -> int:
        """The number of workers that are READY."""
        return sum(worker.status == "READY" for worker in self.workers)


class Management:
    """Client of one server's management API.

    Args:
        url: of the management address, e.g. ``http://127.0.0.1:5001``.
        token: TorchServe's management token, None where tokens are off.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def _call(self, method: str, path: str, timeout: float, **params: Any) -> Any:
        return self._send(method, path, timeout, **params).json()

    def _send(self, method: str, path: str, timeout: float, **params: Any) -> requests.Response:
        address = f"{self.url}{path}"
        try:
            response = requests.request(method, address, headers=self.headers, params=params, timeout=timeout)
        except requests.RequestException as error:
            raise NotRunning(
                f"no server answers at {self.url} ({type(error).__name__}); start one with: python3 scripts/serve.py"
            ) from error
        if not response.ok:
            _, message = error_of(response.text, response.reason)
            raise CommandError(f"{method} {address} was answered with {response.status_code}: {message}")
        return response

    def status(self, version: str | None = None) -> ModelStatus:
        """The state of a version of the model, of the default one unless told otherwise, and of its workers.

        Raises:
            NotRunning: no server answers.
            CommandError: the server answers with an error.
        """
        (model,) = self._call("GET", _route(version), timeout=10)
        return _status(model)

    def versions(self) -> list[ModelStatus]:
        """The state of every version, in TorchServe's order; errors as for :meth:`status`."""
        return [_status(model) for model in self._call("GET", f"{_route()}/all", timeout=10)]

    def register(self, archive: str) -> None:
        """Register an archive of the model store, by its file name, as a further version without workers.

        Raises:
            CommandError: no such file, or its version is registered already.
        """
        self._call("POST", "/models", timeout=60, url=archive, model_name=MODEL_NAME, initial_workers=0)

    def set_default(self, version: str) -> None:
        """Make ``version`` the one that answers requests which name none."""
        self._call("PUT", f"{_route(version)}/set-default", timeout=30)

    def unregister(self, version: str) -> None:
        """Remove a version that isn't the default, and its workers."""
        self._call("DELETE", _route(version), timeout=60)

    def rotate_token(self, kind: str) -> None:
        """Replace the token ``kind``, which is ``management`` or ``inference``; it takes the token ``API``."""
        self._send("GET", "/token", timeout=10, type=kind)  # what it answers isn't JSON

    def card(self, version: str | None = None, timeout: float = 60) -> dict[str, Any]:
        """The model card, as the handler in a worker returns it: the question waits behind the requests in the queue.

        Args:
            version: of the model; None: the default.
            timeout: seconds.

        Raises:
            NotRunning, CommandError: as for :meth:`status`, or the answer holds no card.
        """
        (model,) = self._call("GET", _route(version), timeout=timeout, customized="true")
        card = model.get("customizedMetadata")
        if not isinstance(card, dict):
            raise CommandError(f"the server at {self.url} describes its model without a card; is it of this project?")
        return card

    def scale(self, minimum: int, maximum: int, version: str | None = None) -> None:
        """Set the number of workers; returns when the surplus is removed, see :meth:`wait_for_workers`."""
        self._call("PUT", _route(version), timeout=30, min_worker=minimum, max_worker=maximum)
        deadline = time.monotonic() + 30
        while len(self.status(version).workers) > maximum and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def wait_for_workers(self, minimum: int, maximum: int, timeout: float) -> ModelStatus:
        """Wait until at least ``minimum`` workers are READY, at most ``maximum``, and no others are left.

        Raises:
            CommandError: they aren't within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            settled = status.ready == len(status.workers) and minimum <= status.ready <= maximum
            if settled:
                return status
            if time.monotonic() > deadline:
                states = ", ".join(w.status for w in status.workers) or "none"
                raise CommandError(
                    f"after {timeout:.0f} s {status.ready} of {minimum} workers are READY ({states}); "
                    "see the server's log for the reason, or ask for fewer workers"
                )
            time.sleep(POLL_SECONDS)


def describes(answer: dict[str, Any], card: ModelCard) -> bool:
    """Whether what :meth:`Management.card` returned is ``card``; TorchServe leaves out what is null."""
    return _without_nulls(answer) == _without_nulls(card.to_dict())


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _route(version: str | None = None) -> str:
    """The path of a version, of the default one without a number."""
    return f"/models/{MODEL_NAME}" + (f"/{version}" if version else "")


def _status(model: dict[str, Any]) -> ModelStatus:
    """What a model's description says."""
    workers = [
        Worker(str(w["id"]), str(w["status"]), int(w.get("pid", -1)), int(w.get("memoryUsage", 0)))
        for w in model["workers"]
    ]
    least, most = int(model["minWorkers"]), int(model["maxWorkers"])
    return ModelStatus(str(model["modelVersion"]), str(model["modelUrl"]), workers, least, most)


class NotRunning(CommandError):
    """No server answers at the address."""
