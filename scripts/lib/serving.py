"""What ``serve.py`` tells, and how it waits in the foreground."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

import numpy as np
from PIL import Image

from handler.card import ModelCard
from scripts.client import DenseNetClient
from scripts.lib.console import CommandError, say
from scripts.lib.management import POLL_SECONDS, NotRunning, describes
from scripts.lib.paths import CONFIG
from scripts.lib.server import LOG, OUTPUT, TOKENS, Server, read_properties, read_token, was_stopped

WARM_UP_REQUESTS = 10
"""Pictures a worker."""
NOT_READY_SECONDS = 90.0
"""How long there may be no READY worker before the server is ended, for whoever restarts it. Requests get 503
meanwhile; a worker that was killed is back in about 5 s."""
WATCH_SECONDS = 5.0


def check_served(server: Server, card: ModelCard) -> None:
    """Make sure that what is served is what was meant: between check and start the archive is a file like any other.

    Raises:
        CommandError: it has another card.
    """
    found = server.management.card()
    if not describes(found, card):
        raise CommandError(
            f"the server serves {found.get('name')!r}, and {card.name!r} is meant: the archive in {server.model_store} "
            "was replaced meanwhile; start it again, or give each its own --model-store"
        )


def warm_up(server: Server) -> None:
    """Send a few pictures through the whole server, so that a person's first request is as fast as the tenth.

    The workers warmed up by themselves; this is for the Java in front of them. Where the settings allow
    no picture of that size, none is sent.
    """
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    if buffer.tell() > int(read_properties(CONFIG / "config.properties")["max_request_size"]):
        return
    pictures = [buffer.getvalue()] * (WARM_UP_REQUESTS * server.workers)
    with DenseNetClient(server.url, read_token(server.folder, "inference") if server.token else None) as client:
        for result in client.predict_many(pictures, concurrency=server.workers):
            if result.error:
                raise result.error


def announce(server: Server, card: ModelCard, took: str) -> None:
    """Print the addresses, the model and a curl line."""
    workers = "1 worker" if server.workers == 1 else f"{server.workers} workers"
    say(f"READY in {took}: {card.name} ({card.architecture.name}, {card.num_classes} classes), {workers}")
    say(f"  inference   {server.url}/predictions/densenet")
    say(f"  management  {server.management.url}/models/densenet")
    say(f"  metrics     {server.metrics_url}/metrics")
    say(f"  logs        {server.folder}")
    header = ""
    if server.token:
        say(f"  tokens      {server.folder / TOKENS}")
        header = " -H 'Authorization: Bearer <inference token>'"
    say(f"try: curl{header} -T dog.jpg {server.url}/predictions/densenet")


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: KeyboardInterrupt.

    The first process of a container gets no signal that it doesn't handle, so this comes first.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored: nohup
        signal.signal(signal.SIGHUP, stop)


class Tail:
    """What is written to a log from now on, also where it is rotated meanwhile: another file, or emptied (Windows)."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, self._open(path)
        self._file.seek(0, os.SEEK_END)

    @staticmethod
    def _open(path: Path) -> TextIO:
        return path.open(encoding="utf-8", errors="replace")

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> str:
        """What was written since the last call."""
        text = self._file.read()
        with contextlib.suppress(FileNotFoundError):  # between the end of the old file and the new one
            now, ours = self._path.stat(), os.fstat(self._file.fileno())
            if now.st_ino != ours.st_ino or now.st_size < os.lseek(self._file.fileno(), 0, os.SEEK_CUR):
                following = self._open(self._path)
                text += self._file.read()
                self._file.close()
                self._file = following
                text += following.read()
        return text


def wait_for_end(server: Server) -> None:
    """Print what the server logs until it is stopped.

    Raises:
        CommandError: the server ended by itself, or had no READY worker for ``NOT_READY_SECONDS``.
        KeyboardInterrupt: a signal, see :func:`stop_on_signals`.
    """
    with Tail(server.folder / LOG) as log, Tail(server.folder / OUTPUT) as output:
        asked = ready = time.monotonic()
        running = True
        while running:
            running = server.process() is not None
            time.sleep(POLL_SECONDS)
            sys.stdout.write(log.read() + output.read())
            sys.stdout.flush()
            _reap()
            if time.monotonic() - asked > WATCH_SECONDS:
                asked = time.monotonic()
                if _has_ready_worker(server):
                    ready = time.monotonic()
                elif asked - ready > NOT_READY_SECONDS:
                    raise CommandError(
                        f"no worker was READY for {NOT_READY_SECONDS:.0f} s, so that the server was ended; "
                        f"the reason is in {server.folder / LOG}"
                    )
    if not was_stopped(server):
        raise CommandError(f"TorchServe ended by itself; the reason may be in {server.folder / LOG} or {OUTPUT}")


def _reap() -> None:
    """Take leave of dead processes that nobody else waits for: the first process of a container inherits them."""
    if os.getpid() == 1:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _has_ready_worker(server: Server) -> bool:
    """Whether a worker is READY, as far as the management API tells: an expired token tells nothing."""
    try:
        return server.management.status().ready > 0
    except NotRunning:
        return False
    except CommandError:
        return True
