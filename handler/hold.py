"""Holds: how ``scale.py`` takes workers out of service before TorchServe removes them.

TorchServe kills a removed worker in the middle of its request, which is then answered with 500.
``scale.py`` therefore gives every worker a request of its own first: it makes a folder in the
server's temporary folder and sends requests that name it. A worker that gets one signs in with its
process id and waits until the folder is gone. What TorchServe then drops is ``scale.py``'s request;
everybody else's waits in the queue. A client can't do that: it can't make the folder.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handler.body import header

HEADER = "x-densenet-hold"
PREFIX = "hold-"
MAX_HOLD_S = 30.0
"""A worker goes on after this time even if nobody releases it."""


def requested_hold(headers: Mapping[str, Any]) -> Path | None:
    """The folder that a request asks to wait for; None if it doesn't ask, or the folder isn't this user's."""
    name = header(headers, HEADER)
    if not re.fullmatch(PREFIX + "[0-9a-f]{32}", name):
        return None
    folder = Path(tempfile.gettempdir(), name)
    try:
        own = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return None
    return folder if own and folder.is_dir() else None


def wait_for_release(folder: Path) -> None:
    """Sign in and wait until ``folder`` is gone, at most ``MAX_HOLD_S`` seconds."""
    try:
        (folder / str(os.getpid())).touch()
    except OSError:
        return  # released in this moment
    deadline = time.monotonic() + MAX_HOLD_S
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
