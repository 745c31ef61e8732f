"""Decoding in a process of its own, for pictures that could take the worker down.

::

    picture bytes ─▶ pipe ─▶ decoding process ─▶ pipe ─▶ uint8 array, or what is wrong

All but ordinary JPEG and PNG pictures (:mod:`handler.ordinary`) go to a process that may use so much
memory and processor time and no more. Whatever happens to it, a crash of a decoder, a lack of memory,
work without an end, is the answer of that one request; the next such picture gets another process (0.3 s).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin

from handler import errors
from handler.errors import ImageTooComplex, ImageTooLarge, InvalidImage, RequestError, ServerBusy
from handler.formats import ACCEPTED
from handler.images import open_picture
from handler.preprocessing import Preprocessing, View

logger = logging.getLogger(__name__)

BYTES_A_PIXEL = 18
"""Memory for decoding: a transparent WebP takes the most (1.7 GB for 100 million pixels, Pillow 13.0)."""
LARGE_LOCK = "large-picture.lock"
"""Whoever has it may take the memory for a large picture."""
WEBP_BYTES = 9
"""What a WebP's decoder reserves a pixel."""
SPARE_BYTES = 48 * 2**20
"""Memory beside a picture's pixels: its file, and what decoders have for themselves."""
LOW_PRIORITY = 2
"""Niceness of work that was put off: beside predictions on the same core it gets 39 % of it, so that it ends, too."""

_REQUEST = struct.Struct(">QIQQd")
"""Bytes of the picture; px of the sides of the larger view, 0: none; its Share; seconds of processor time."""
_HEADER = struct.Struct(">cdI")
"""Kind of the answer, seconds of processor time that it took, bytes that follow."""
_SIZE = struct.Struct(">II")
_READY, _ARRAY, _ERROR = b"R", b"A", b"E"
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from handler.isolation import serve; serve(sys.argv[2])"


@dataclass(frozen=True)
class Share:
    """Bytes of memory for the pixels of a picture: what it may always take, and what one at a time of a server may."""

    small: int
    large: int


class DecodingProcess:
    """A process that decodes one picture after the other.

    Args:
        preprocessing: resize and crop.
        max_pixels: width times height of a picture at most.

    Raises:
        ServerBusy: it can't be started now.
    """

    def __init__(self, preprocessing: Preprocessing, max_pixels: int) -> None:
        self._crop = preprocessing.crop
        settings = {"resize": preprocessing.resize, "crop": preprocessing.crop, "max_pixels": max_pixels}
        self._process = start(_CODE, json.dumps(settings))
        self._ended = self._ready = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it takes another picture."""
        return not self._ended and self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until it has started; one that ended meanwhile is found out by :meth:`decode`."""
        if not self._ready and self._process.stdout is not None:
            self._ready = self._process.stdout.read(1) == _READY

    def decode(self, data: bytes, side: int, share: Share, seconds: float) -> tuple[View, float]:
        """What the network sees of a picture file, and how many seconds of processor time that took.

        Args:
            data: the picture file.
            side: px of the sides of the larger view; 0: none is wanted.
            share: memory that decoding may take.
            seconds: of processor time that it may take; it is ended within a second more.

        Raises:
            InvalidImage, ImageTooLarge: see :func:`handler.images.decode`; also if the decoder crashed on it, or it
                took too much memory.
            ImageTooComplex: it took too long.
        """
        try:
            content, used = self._exchange(data, side, share, seconds)
        except (OSError, EOFError):
            raise self._reason(data, seconds) from None
        width, height = _SIZE.unpack_from(content)
        pixels = np.frombuffer(content, np.uint8, offset=_SIZE.size)
        small = self._crop * self._crop * 3
        return View(_square(pixels[:small], self._crop), _square(pixels[small:], side), (width, height)), used

    def lower_priority(self) -> None:
        """Let it step back behind predictions, for good: only root could take that back."""
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):  # it has just ended
                os.setpriority(os.PRIO_PROCESS, self.pid, LOW_PRIORITY)

    def end(self) -> int:
        """End it; its exit code, that of its own end if it had ended. Another thread's :meth:`decode` ends, too."""
        self._ended = True
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """End it and close its pipes; no other thread may be in :meth:`decode`."""
        self.end()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what wasn't written yet
                pipe.close()  # type: ignore[union-attr]  # both are pipes

    def _exchange(self, data: bytes, side: int, share: Share, seconds: float) -> tuple[bytes, float]:
        self.wait_until_ready()
        source, target = self._process.stdout, self._process.stdin
        assert source is not None and target is not None
        target.write(_REQUEST.pack(len(data), side, share.small, share.large, seconds))
        target.write(data)
        target.flush()
        kind, used, length = _HEADER.unpack(_take(source, _HEADER.size))
        content = _take(source, length)
        if kind == _ERROR:
            name, message = json.loads(content)
            raise getattr(errors, name)(message)
        return content, used

    def _reason(self, data: bytes, seconds: float) -> RequestError:
        """Why the process ended in the middle of a picture."""
        stopped, code = self._ended, self.end()
        what = f"received a picture of {len(data):,} bytes (it begins with {data[:12]!r})"
        if not stopped:
            logger.warning("the decoding process ended with %d on a picture of %d bytes", code, len(data))
        if os.name == "posix" and code == -signal.SIGXCPU:
            return ImageTooComplex(
                f"{what} that takes more than {seconds:.0f} s to decode; save it anew with an ordinary program, "
                "or smaller"
            )
        if os.name == "posix" and code == -signal.SIGKILL:
            return ImageTooLarge(f"{what} that takes more memory to decode than this machine has left; send it smaller")
        return InvalidImage(
            f"{what} that its decoder can't cope with; save it anew with an ordinary program, {ACCEPTED}"
        )


def start(code: str, *arguments: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """A Python process of this package's, with pipes to and from it, that ends when its standard input does.

    Args:
        code: Python; it gets the package's parent as its first argument.
        arguments: those that follow.
        pass_fds: open files that it inherits.

    Raises:
        ServerBusy: the system has no memory, process or file left for it.
    """
    command = [sys.executable, "-I", "-c", code, str(Path(__file__).parent.parent), *arguments]
    # one place for the allocator, not one a thread: each would reserve memory that the limit counts
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    # its stderr would be a way to fill the log: libtiff complains about each wrong tag
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment, pass_fds=pass_fds)
    except OSError as error:
        logger.warning("no process can be started for a request: %s", error)
        raise ServerBusy(
            f"the server can't start a process for this request now ({error.strerror}); try again in a few seconds"
        ) from None


def _square(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    return pixels.reshape(side, side, 3)  # (side, side, 3) uint8


def _take(pipe: IO[bytes], length: int) -> bytes:
    content = pipe.read(length)
    if len(content) != length:
        raise EOFError
    return content


def serve(settings: str) -> NoReturn:
    """The decoding process: pictures from standard input, arrays or errors to standard output, until the input ends."""
    chosen = json.loads(settings)
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library may print is no answer
    go_first()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each would have memory of its own
    preprocessing = Preprocessing(chosen["resize"], chosen["crop"], (), ())
    target.write(_READY)
    target.flush()
    while request := source.read(_REQUEST.size):
        length, side, small, large, seconds = _REQUEST.unpack(request)
        data = _take(source, length)
        before = _limit_time(seconds)
        try:
            view = _view(preprocessing, data, chosen["max_pixels"], side, Share(small, large))
            kind, content = _ARRAY, _SIZE.pack(*view.size) + view.array.tobytes() + view.enlarged.tobytes()
        except RequestError as error:
            kind, content = _ERROR, json.dumps([error.type, str(error)]).encode()
        except MemoryError:
            message = (
                f"received a picture of {len(data):,} bytes that takes more memory to decode than its pixels explain; "
                "save it anew with an ordinary program, or smaller"
            )
            kind, content = _ERROR, json.dumps(["ImageTooLarge", message]).encode()
        target.write(_HEADER.pack(kind, _processor_time() - before, len(content)))
        target.write(content)
        target.flush()
    sys.exit(0)


def _view(preprocessing: Preprocessing, data: bytes, max_pixels: int, side: int, share: Share) -> View:
    """What the network sees of a picture, within limits of memory."""
    with contextlib.ExitStack() as lock:

        def reserve(needed: int) -> None:
            if needed > share.large:
                raise ImageTooLarge(
                    f"received a picture of {len(data):,} bytes that takes about {needed / 1e6:,.0f} MB of memory to "
                    f"decode; this server has {share.large / 1e6:,.0f} MB for one: send it smaller, or as baseline JPEG"
                )
            if needed > share.small:
                lock.enter_context(only_one(LARGE_LOCK))
            _limit_memory(share.large if needed > share.small else share.small)

        # a WebP's decoder reserves memory as it is opened, which it takes when it decodes
        _limit_memory(max_pixels * WEBP_BYTES if data.startswith(b"RIFF") else share.small)
        return preprocessing.view(open_picture(data, max_pixels), max_pixels, side, reserve)


@contextlib.contextmanager
def only_one(name: str, wait: bool = True) -> Iterator[int]:
    """A lock of which a server has one, by an open file: free whenever and however the process that has it ends.

    Args:
        name: of the file, in the server's temporary folder.
        wait: for the lock; else OSError if another process has it.
    """
    file = os.open(Path(tempfile.gettempdir(), name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file
    finally:
        os.close(file)


def go_first() -> None:
    """If the machine runs out of memory, this process goes first, not the worker; it leaves no core file."""
    if sys.platform == "win32":  # pragma: no cover (Windows)
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # Linux alone
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


@cache
def _address_space() -> int | None:
    """Bytes of this process' address space at first, where the system tells and limits it (Linux)."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return None


def _limit_memory(size: int) -> None:
    """So many bytes more than this process has for itself."""
    own = _address_space()
    if own is not None and sys.platform != "win32":
        import resource

        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_AS, (own + SPARE_BYTES + size, resource.getrlimit(resource.RLIMIT_AS)[1])
            )


def _limit_time(seconds: float) -> float:
    """So much more processor time than was used, the result; beyond, the kernel ends this process (SIGXCPU)."""
    used = _processor_time()
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1, hard))
    return used


def _processor_time() -> float:
    used = os.times()
    return used.user + used.system
