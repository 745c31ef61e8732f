"""What ``serve.py`` tells, and how it waits in the foreground."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

from scripts.lib.console import CommandError, say
from scripts.lib.management import POLL_SECONDS
from scripts.lib.model_folder import ModelFolder
from scripts.lib.server import Server, stop_server


def announce(server: Server, model: ModelFolder, took: str) -> None:
    """Print the addresses, the model and a curl line."""
    card = model.card
    workers = "1 worker" if server.workers == 1 else f"{server.workers} workers"
    say(f"READY in {took}: {card.name} ({card.architecture.name}, {card.num_classes} classes), {workers}")
    say(f"  inference   {server.url}/predictions/densenet")
    say(f"  management  {server.management.url}/models/densenet")
    say(f"  metrics     {server.metrics_url}/metrics")
    say(f"  logs        {server.folder}")
    token = ""
    if server.token:
        say(f"  tokens      {server.folder / 'key_file.json'}")
        token = " -H 'Authorization: Bearer <inference token>'"
    say(f"try: curl{token} -T dog.jpg {server.url}/predictions/densenet")


def wait_for_end(server: Server) -> int:
    """Wait until Ctrl-C or SIGTERM, then stop the server.

    Returns:
        0 after a stop that was asked for.

    Raises:
        CommandError: the server ended by itself.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, stop)
    try:
        while server.process():
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        say("stopping …")
        stop_server(server)
        say("stopped")
        return 0
    if not (server.folder / "state.json").exists():
        return 0  # stop.py did it
    stop_server(server)
    raise CommandError(f"TorchServe ended by itself; the reason may be in {server.folder / 'server.log'}")
