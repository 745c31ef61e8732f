"""Fetch one file with a known hash: progress, resuming, retries, and never a wrong or half file at its place.

The bytes go into ``<target>.part``, which stays behind when the connection breaks, and is renamed
only when its SHA-256 is right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
from urllib3.exceptions import NameResolutionError, ReadTimeoutError

from handler.card import sha256_of
from scripts.lib import locking, paths
from scripts.lib.console import CommandError, Progress, say, warn

CHUNK = 16 * 1024
"""Bytes that are read at a time; the "first byte" has come when the first chunk has."""
STALL_TIMEOUT_S = 30.0
"""Seconds without a byte after which a running transfer counts as cut off."""
RETRY_PAUSES_S = (1.0, 2.0, 4.0)
"""Seconds before each new attempt after a transfer was cut off."""
KIB, MIB = 1024, 1024 * 1024


class DownloadError(CommandError):
    """No address delivered the file. ``reason`` says why, without what to do."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Failure(Exception):
    """An address doesn't deliver; the message is the reason alone."""


class _Cut(_Failure):
    """An address delivered some bytes and then stopped: worth another attempt."""


@dataclass(frozen=True)
class _Answer:
    """An HTTP answer whose first chunk has arrived (empty where the status isn't 200 or 206)."""

    response: requests.Response
    first: bytes
    rest: Iterator[bytes]


def download(
    urls: Sequence[str], target: Path, sha256: str, *, what: str, first_byte_timeout: float = 30, instead: str = ""
) -> Path:
    """Fetch a file, unless ``target`` already has the right content.

    A transfer that breaks off is tried again a few times from where it stopped; after that its
    bytes stay in ``<target>.part`` and the next call goes on from there. Processes that want the same
    target wait for each other.

    Args:
        urls: addresses of the same content (``http``, ``https`` or ``file``), tried in turn.
        target: where the file goes; a file with another content is replaced.
        sha256: the file's SHA-256 in lower-case hex, whole or its first 8 digits or more.
        what: the file's name in messages.
        first_byte_timeout: seconds to wait for a first byte, name look-up, connecting, redirects
            and all addresses together.
        instead: what a person can do other than to try again, for the error message.

    Returns:
        ``target``.

    Raises:
        DownloadError: no address delivered the right content.
        CommandError: the file can't be written, or an address isn't one.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise ValueError(f"sha256 must be 8 to 64 hex digits, is {sha256!r}")
    for url in urls:
        _check_address(url, what)
    part = target.with_name(target.name + ".part")
    try:
        if has_hash(target, sha256):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, f"{what} is being downloaded by another process; waiting for it"):
            if not has_hash(target, sha256):  # the other process may have brought it
                _from_any(urls, part, sha256, what, first_byte_timeout, instead)
                part.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            part.unlink(missing_ok=True)  # a full disk helps nobody, least of all the next attempt
        raise CommandError(
            f"{what} can't be written to {error.filename or target}: {error.strerror or error}; "
            "free space there, make it writable, or choose another place (DENSENET_CACHE moves the cache)"
        ) from error
    return target


def has_hash(path: Path, sha256: str) -> bool:
    """Whether ``path`` is a readable file whose SHA-256 (hex) begins with ``sha256``."""
    try:
        return path.is_file() and sha256_of(path).startswith(sha256)
    except PermissionError:
        return False


@contextlib.contextmanager
def locked(target: Path, waiting: str) -> Iterator[None]:
    """Keep other processes (and threads) away from ``target``; say ``waiting`` if one has to be waited for.

    Raises:
        CommandError: the cache isn't writable.

    The lock files lie in the cache, not beside the target: they can't be removed safely, and nobody
    wants to find them in a folder of pictures. A process that dies lets go of its locks.
    """
    name = f"{hashlib.sha256(os.fsencode(target.resolve())).hexdigest()[:32]}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locking.locked(paths.CACHE / "locks" / name, lambda: say(waiting)))
        except OSError as error:
            raise CommandError(
                f"the cache {paths.CACHE} can't be written to: {error.strerror or error}; "
                "make it writable, or set DENSENET_CACHE to another folder"
            ) from error
        yield


def _from_any(urls: Sequence[str], part: Path, sha256: str, what: str, seconds: float, instead: str) -> None:
    """Fill ``part`` with the right content from the first address that has it."""
    deadline = time.monotonic() + seconds
    reasons = []
    for position, url in enumerate(urls):
        share = (deadline - time.monotonic()) / (len(urls) - position)
        try:
            return _from_one(url, part, sha256, what, share)
        except _Failure as failure:
            reasons.append(f"{_shown(url)} {failure}")
    reason = "; ".join(reasons)
    kept = f" ({_size(part.stat().st_size)} are kept, and the download goes on from there)" if part.exists() else ""
    raise DownloadError(
        f"{what} can't be downloaded: {reason}; expected a file with SHA-256 {sha256[:12]}…; "
        f"try again{kept}{', or ' + instead if instead else ''}",
        reason,
    )


def _from_one(url: str, part: Path, sha256: str, what: str, seconds: float) -> None:
    """Fill ``part`` with the right content from ``url``, in several attempts if the transfer is cut off."""
    if has_hash(part, sha256):
        return  # stopped between the last byte and the renaming
    resumed = part.exists()
    _transfer_patiently(url, part, what, seconds)
    found, size = sha256_of(part), part.stat().st_size
    if found.startswith(sha256):
        return
    part.unlink()
    if resumed:  # its beginning may have been from somewhere else
        return _from_one(url, part, sha256, what, seconds)
    raise _Failure(
        f"sent another file ({_size(size)}, SHA-256 {found[:12]}…), perhaps a proxy's page or another version"
    )


def _transfer_patiently(url: str, part: Path, what: str, seconds: float) -> None:
    flowing = False
    for pause in (*RETRY_PAUSES_S, None):
        try:
            return _transfer(url, part, what, time.monotonic() + seconds)
        except _Failure as failure:
            flowing = flowing or isinstance(failure, _Cut)
            if pause is None or not flowing:
                raise
            warn(f"{what}: {_shown(url)} {failure}; trying again in {pause:g} s")
            time.sleep(pause)


def _transfer(url: str, part: Path, what: str, deadline: float) -> None:
    """Append to ``part`` what it lacks; the first byte must come before ``deadline`` (monotonic seconds)."""
    if urlsplit(url).scheme == "file":
        return _copy(url, part)
    offset = part.stat().st_size if part.exists() else 0
    answer = _ask(url, offset, deadline)
    response = answer.response
    with contextlib.closing(response):
        if offset and (response.status_code == 416 or (response.status_code == 206 and not _starts(response, offset))):
            part.unlink()
            return _transfer(url, part, what, deadline)
        if response.status_code != 200 and not (offset and response.status_code == 206):
            raise _Failure(f"answered {response.status_code} {response.reason}".rstrip())
        going_on = response.status_code == 206
        length = response.headers.get("Content-Length", "")
        left = int(length) if length.isdecimal() else None
        note = f"{what} (after the first {_size(offset)})" if going_on else what
        with part.open("ab" if going_on else "wb") as file, _Meter(note, left) as meter:
            _receive(answer, file, meter)


def _check_address(url: str, what: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.scheme == "file"):
        raise CommandError(f"{what}: {url!r} isn't an address; expected http://…, https://… or file:///…")


def _starts(response: requests.Response, offset: int) -> bool:
    """Whether a 206 answer begins where it was asked to."""
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _receive(answer: _Answer, file: BinaryIO, meter: _Meter) -> None:
    chunk = answer.first
    while chunk:
        file.write(chunk)
        meter.add(len(chunk))
        try:
            chunk = next(answer.rest, b"")
        except requests.RequestException as error:
            stalled = bool(error.args) and isinstance(error.args[0], ReadTimeoutError)
            how = f"stalled for {STALL_TIMEOUT_S:g} s" if stalled else "broke off"
            raise _Cut(f"{how} after {_size(file.tell())}") from error


def _copy(url: str, part: Path) -> None:
    source = Path(url2pathname(urlsplit(url).path))
    try:
        reader = source.open("rb")
    except OSError as error:
        raise _Failure(f"can't be read: {error.strerror}") from error
    with reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _ask(url: str, offset: int, deadline: float) -> _Answer:
    """The answer to a GET from byte ``offset`` on, with its first chunk, before ``deadline``.

    The time-outs of ``requests`` count each connection, each redirect and each read by itself, and
    the look-up of a name not at all. Only a thread that can be left behind keeps a total.
    """
    seconds = max(deadline - time.monotonic(), 0.01)
    future: Future[_Answer] = Future()

    def ask() -> None:
        try:
            answer = _get(url, offset, seconds)
        except Exception as error:
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                future.set_exception(error)
            return
        try:
            future.set_result(answer)
        except InvalidStateError:
            answer.response.close()

    threading.Thread(target=ask, name="download", daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except FutureTimeout:
        if future.cancel():
            raise _Failure(f"sent nothing within {seconds:.0f} s") from None
        return future.result()  # it came at the very last moment
    except (requests.RequestException, ValueError) as error:
        raise _Failure(_why(error, seconds)) from error


def _get(url: str, offset: int, seconds: float) -> _Answer:
    headers = {"Accept-Encoding": "identity"}  # ranges and lengths must count the file's own bytes
    if offset:
        headers["Range"] = f"bytes={offset}-"
    response = requests.get(url, headers=headers, stream=True, timeout=(seconds, STALL_TIMEOUT_S))
    try:
        rest: Iterator[bytes] = response.iter_content(CHUNK)
        return _Answer(response, next(rest, b"") if response.status_code in (200, 206) else b"", rest)
    except BaseException:
        response.close()
        raise


def _why(error: requests.RequestException | ValueError, seconds: float) -> str:
    """Why there was no answer, in words; without the address, which may hold a password."""
    if isinstance(error, requests.exceptions.SSLError):
        return "has a TLS certificate that isn't trusted (REQUESTS_CA_BUNDLE names a file of trusted ones)"
    if isinstance(error, requests.exceptions.ProxyError):
        return "can't be reached through the proxy that HTTPS_PROXY or HTTP_PROXY names"
    if isinstance(error, requests.Timeout):
        return f"sent nothing within {seconds:.0f} s"
    if isinstance(error, ValueError):  # requests' InvalidURL and InvalidSchema, urllib3's LocationParseError
        return "isn't an address, or leads to none (expected http:// or https://)"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NameResolutionError):
            return "has an unknown host name (no internet connection?)"
        if isinstance(cause, OSError) and cause.errno:
            return f"can't be reached: {os.strerror(cause.errno)}"
        cause = cause.__cause__ or cause.__context__
    return f"broke off before the first byte ({type(error).__name__})"


def _shown(url: str) -> str:
    """``url`` without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _size(count: int) -> str:
    """A number of bytes for people: ``14 bytes``, ``646 KiB``, ``29.4 MiB``."""
    if count < 10 * KIB:
        return f"{count} bytes"
    return f"{count // KIB} KiB" if count < 10 * MIB else f"{count / MIB:.1f} MiB"


class _Meter:
    """A progress bar that counts bytes; shows nothing where the total is unknown (None)."""

    def __init__(self, what: str, total: int | None) -> None:
        self.unit, name = (MIB, " MiB") if (total or 0) >= 10 * MIB else (KIB, " KiB")
        self.progress = Progress(what, -(-total // self.unit), name) if total else None
        self.bytes = 0

    def __enter__(self) -> _Meter:
        return self

    def add(self, count: int) -> None:
        """Count ``count`` bytes more."""
        self.bytes += count
        if self.progress and (units := -(-self.bytes // self.unit) - self.progress.done):
            self.progress.advance(units)

    def __exit__(self, *_: object) -> None:
        if self.progress and self.progress.terminal and not self.progress.ended:
            print(file=sys.stderr)  # what comes next begins on a line of its own
