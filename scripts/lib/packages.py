"""Packages that few people need: installed when they are asked for, into the cache, never into ``.venv``."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.lib import paths
from scripts.lib.console import CommandError, say
from scripts.lib.download import locked
from scripts.lib.environment import from_locks


def optional_packages(lock: Path, what: str) -> Path:
    """The folder with the packages of ``lock``, installed now if it isn't there.

    Args:
        lock: a lock file; a package with another SHA-256 is refused.
        what: what they are for, as it stands in a message.

    Raises:
        CommandError: they can't be installed.
    """
    version = "{}.{}".format(*sys.version_info[:2])
    key = hashlib.sha256(lock.read_bytes() + version.encode()).hexdigest()[:16]
    folder = paths.CACHE / "packages" / key
    with locked(folder, f"another process is installing the packages for {what}; waiting for it"):
        if folder.is_dir():
            return folder
        say(f"installing the packages for {what}, once (some hundred MB, about half a minute)")
        part = folder.with_name(f"{key}.part")
        shutil.rmtree(part, ignore_errors=True)
        command = [
            *(sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"),
            *("--progress-bar=off", "--target", str(part), *from_locks(lock)),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode or not part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise CommandError(
                f"the packages for {what} can't be installed: {said[-1].strip() if said else 'pip said nothing'}; "
                "check the network connection and the free space on the disk, or do without"
            )
        part.replace(folder)  # whole or not at all: an interrupted installation is made again
        return folder
