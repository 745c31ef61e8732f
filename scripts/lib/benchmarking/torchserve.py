"""TorchServe twice: this project's server, and the example that TorchServe itself shows."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from abc import abstractmethod
from pathlib import Path

import psutil
import torch

from handler.card import ModelCard
from handler.network import build_network, fit_weights, read_weights
from scripts.lib.archive import write_archive
from scripts.lib.benchmarking.contenders import (
    Answer,
    HttpContender,
    Picture,
    Request,
    count,
    family,
    free_ports,
)
from scripts.lib.benchmarking.subject import Subject
from scripts.lib.console import CommandError
from scripts.lib.machine import default_workers
from scripts.lib.management import Management, ModelStatus
from scripts.lib.model_folder import LABELS, ModelFolder
from scripts.lib.paths import MODEL_NAME
from scripts.lib.server import (
    LOG,
    LOOPBACK,
    OUTPUT,
    STOP_TIMEOUT,
    Server,
    base_environment,
    clean_up,
    end_family,
    last_line,
    launch,
    run_folder,
    start_server,
    stop_server,
    worker_error,
)

STOCK_HANDLER = "image_classifier"
STOCK_TOPK = 5
"""Classes in each answer of the stock handler (``ts.torch_handler.image_classifier``)."""
MODEL_FILE = "model.py"
STATE_FILE = "densenet.pth"


class _TorchServe(HttpContender):
    """What two TorchServe contenders share: the management API tells about workers."""

    _management: Management
    _port: int

    @abstractmethod
    def _check(self) -> None:
        """Raise CommandError if the server or a worker died."""

    def _status(self) -> ModelStatus | None:
        try:
            return self._management.status()
        except CommandError:
            return None  # not listening yet, or the model isn't registered yet

    def ready(self) -> tuple[int, int]:
        status = self._status()
        if status is None or not status.ready:
            self._check()
        return (status.ready, max(1, status.min_workers)) if status else (0, 1)

    def worker_pids(self) -> list[int]:
        status = self._status()
        return [worker.pid for worker in status.workers if worker.status == "READY"] if status else []

    @property
    def address(self) -> tuple[str, int]:
        return LOOPBACK, self._port

    def request(self, picture: Picture) -> Request:
        return Request("PUT", f"/predictions/{MODEL_NAME}", {}, picture.content)


class Ours(_TorchServe):
    """This project's server, as ``serve.py`` starts it.

    Args:
        workers: number of worker processes, None for ``serve.py``'s own choice.
    """

    def __init__(self, name: str, workers: int | None) -> None:
        self.name, self.workers, self.what = name, workers, "this project's server"
        self._server: Server | None = None

    def prepare(self, subject: Subject, java_home: Path, folder: Path) -> None:
        self._java_home, self._store = java_home, folder
        self._count = self.workers or default_workers()
        own = "" if self.workers else " (serve.py's own number)"
        threads = count(subject.card.threads_per_worker, "thread")
        self.what = f"this project's server, {count(self._count, 'worker')}{own} of {threads}, {subject.settings}"
        write_archive(subject.model, subject.card, subject.converted, folder)

    def start(self) -> None:
        self._port = free_ports()
        self._server = start_server(self._store, self._java_home, self._port, workers=self._count)
        self._management = self._server.management

    def _check(self) -> None:
        if self._server:
            _check_alive(self.name, self._server.process(), self._server.folder / LOG)

    def processes(self) -> list[psutil.Process]:
        return family(self._server.process()) if self._server else []

    def stop(self) -> None:
        if self._server:
            stop_server(self._server)
            clean_up(self._port)
            shutil.rmtree(run_folder(self._port), ignore_errors=True)
            self._server = None


class Stock(_TorchServe):
    """TorchServe's ``image_classifier`` example (eager mode) with its default settings.

    Not default are the ports, the number of workers where ``workers`` isn't None, and that it
    asks for no token.

    Args:
        workers: number of worker processes, None for TorchServe's own choice, one a logical processor.
    """

    def __init__(self, name: str, workers: int | None) -> None:
        self.name, self.workers = name, workers
        number = "a worker a processor (its default)" if workers is None else count(workers, "worker")
        self.what = f"TorchServe's {STOCK_HANDLER} example, {number}, torch float32, torch's own number of threads"
        self._process: psutil.Process | None = None

    def prepare(self, subject: Subject, java_home: Path, folder: Path) -> None:
        model = subject.model
        if model.card.num_classes < STOCK_TOPK:
            raise CommandError(
                f"the model has {model.card.num_classes} classes; TorchServe's {STOCK_HANDLER} handler answers with "
                f"{STOCK_TOPK} and fails with fewer: give a model with {STOCK_TOPK} classes or more"
            )
        self._java_home, self._store = java_home, folder / "store"
        stock_archive(model, self._store)

    def start(self) -> None:
        self._port = free_ports()
        self._management = Management(f"http://{LOOPBACK}:{self._port + 1}")
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))  # short: sockets lie in it
        arguments = ["--model-store", str(self._store), "--disable-token-auth"]
        environment = stock_environment(self._java_home, self._folder)
        properties = stock_properties(self._port, self.workers)
        self._process, _ = launch(self._folder, self._folder, properties, arguments, environment)
        if self._process is None:
            said = last_line(self._folder / OUTPUT)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise CommandError(f"{self.name}: TorchServe didn't start: {said}")

    def _check(self) -> None:
        _check_alive(self.name, self._process, self._folder / OUTPUT)

    def processes(self) -> list[psutil.Process]:
        return family(self._process)

    def parse(self, body: bytes) -> Answer:
        # {label: probability} of five labels; a label that is there twice appears once
        data = {str(label): float(probability) for label, probability in json.loads(body).items()}
        best = max(data, key=lambda label: data[label])
        return Answer(best, data[best])

    def stop(self) -> None:
        if self._process is None:
            return
        end_family(self._process, STOP_TIMEOUT)
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


def stock_properties(port: int, workers: int | None) -> dict[str, str]:
    """TorchServe's settings: its defaults but for the ports from ``port`` on, and for ``workers`` where given."""
    properties = {
        "inference_address": f"http://{LOOPBACK}:{port}",
        "management_address": f"http://{LOOPBACK}:{port + 1}",
        "metrics_address": f"http://{LOOPBACK}:{port + 2}",
        "grpc_inference_port": str(port + 3),
        "grpc_management_port": str(port + 4),
    }
    return properties if workers is None else {**properties, "default_workers_per_model": str(workers)}


def stock_environment(java_home: Path, folder: Path) -> dict[str, str]:
    """An environment with Java and the folder for logs and sockets; no tuning of ours."""
    # CI: OpenVINO, which TorchServe's handlers import, reports each start to Google Analytics, but not from there
    return {**base_environment(java_home, folder, folder), "CI": "true"}


def stock_model_file(card: ModelCard) -> str:
    """``model.py`` of the example for this card's architecture: a class that takes no arguments.

    Follows ``examples/image_classifier/densenet_161/model.py`` of pytorch/serve.
    """
    a = card.architecture
    lines = [
        "from torch import nn",
        "from torchvision.models.densenet import DenseNet",
        "",
        "",
        "class ImageClassifier(DenseNet):",
        "    def __init__(self):",
        "        super().__init__(",
        f"            growth_rate={a.growth_rate},",
        f"            block_config={a.block_config!r},",
        f"            num_init_features={a.num_init_features},",
        f"            bn_size={a.bn_size},",
        f"            num_classes={card.num_classes},",
        "        )",
        "        for module in self.modules():",
        "            if isinstance(module, nn.BatchNorm2d):",
        f"                module.eps = {a.batch_norm_eps!r}",
    ]
    return "\n".join(lines) + "\n"


def stock_state(model: ModelFolder) -> bytes:
    """The model's float32 state dict as ``torch.save`` writes it, counters of batch norm included."""
    network = build_network(model.card.architecture, model.card.num_classes)
    fit_weights(network, read_weights(model.weights), f"the weights in {model.weights.name}")
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()


def stock_archive(model: ModelFolder, store: Path) -> Path:
    """The example's archive of ``model`` in ``store``, made with torch-model-archiver.

    Raises:
        CommandError: torch-model-archiver failed.
    """
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-archive-") as temporary:
        stage = Path(temporary, "stage")
        stage.mkdir()
        (stage / MODEL_FILE).write_text(stock_model_file(model.card), encoding="utf-8")
        (stage / STATE_FILE).write_bytes(stock_state(model))
        shutil.copy(model.path / LABELS, stage / LABELS)
        command = [
            *(sys.executable, "-m", "model_archiver.model_packaging", "--force"),
            *("--model-name", MODEL_NAME, "--version", "1.0", "--handler", STOCK_HANDLER),
            *("--model-file", str(stage / MODEL_FILE), "--serialized-file", str(stage / STATE_FILE)),
            *("--extra-files", str(stage / LABELS), "--export-path", str(store)),
        ]
        # torch-model-archiver stages everything in <temp folder>/densenet: give it one of its own
        environment = {**os.environ, "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        archive = store / f"{MODEL_NAME}.mar"
        if done.returncode or not archive.is_file():
            raise CommandError(f"torch-model-archiver failed: {(done.stderr or done.stdout).strip()[-500:]}")
        return archive


def check_installed() -> None:
    """Raise CommandError unless the module that stock workers need is there."""
    if importlib.util.find_spec("ts.torch_handler") is None:
        raise CommandError("TorchServe isn't installed in this Python; run the command without DENSENET_NO_VENV")


def _check_alive(name: str, process: psutil.Process | None, log: Path) -> None:
    error = worker_error(log)
    if error:
        raise CommandError(f"{name}: the worker can't start: {error}")
    if process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        raise CommandError(f"{name}: TorchServe died at its start: {last_line(log)}")
