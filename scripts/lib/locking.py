"""One command at a time: locks on files, which end with the process that holds them.

Standard library only: the set-up of ``.venv`` takes one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.1


@contextmanager
def locked(file: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Keep other processes, and threads, away from what ``file`` stands for.

    Args:
        file: made where it is missing, with its folder. It stays: it couldn't be removed safely.
        waiting: called once if another holds the lock, which is then waited for.

    Yields:
        The descriptor of the open file. A program that inherits it holds the lock, too.

    Raises:
        OSError: the file can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        if not _try_lock(opened.fileno()):
            waiting()
            while not _try_lock(opened.fileno()):
                time.sleep(POLL_SECONDS)
        yield opened.fileno()


def _try_lock(fd: int) -> bool:
    """Take the lock on an open file if nobody holds it; it ends with the last process that has the file open."""
    try:
        if sys.platform == "win32":  # pragma: no cover (Windows)
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
