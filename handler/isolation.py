"""Decoding in a process of its own, for pictures that could take the worker down.

::

    picture bytes ─ is_ordinary? ─ yes ─▶ decoded in the worker
                          └ no ─▶ pipe ─▶ decoding process ─▶ pipe ─▶ uint8 array, or what is wrong

Nearly every picture is an ordinary JPEG or PNG, whose work and memory are bounded by what its header
says: it is decoded in the worker. All others, other formats, large pictures and odd structures, go
to a process that may use so much memory and processor time for one picture and no more. Whatever
happens to it, a crash of a decoder, a lack of memory, work without an end, is the answer of that one
request; the worker starts another one at the next such picture (0.3 s).
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
import threading
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import numpy.typing as npt

from handler import errors
from handler.errors import ImageTooComplex, ImageTooLarge, InvalidImage, RequestError
from handler.images import ACCEPTED
from handler.preprocessing import Preprocessing, View

logger = logging.getLogger(__name__)

ORDINARY_BYTES = 8 * 2**20
ORDINARY_PIXELS = 16_000_000
ORDINARY_SEGMENTS = 100
"""Segments of a JPEG before its first scan; a camera writes 10 to 30."""
ORDINARY_SCANS = 32
"""Scans of a JPEG; a progressive one has about 10. Each costs a pass over the whole picture, and can be 20 bytes."""
ORDINARY_CHUNKS = 2000
"""Chunks of a PNG: 8 MiB in pieces of 8 kB are 1000."""

BYTES_A_PIXEL = 28
"""Memory for decoding: a transparent WebP takes the most (2.8 GB for 100 million pixels, Pillow 13.0)."""
SPARE_BYTES = 256 * 2**20
WALL_FACTOR = 3
"""Seconds on the clock for a second of processor time, before the process is ended from outside."""

_REQUEST = struct.Struct(">QI")
"""Bytes of the picture, and px of the sides of the larger view; 0: none is wanted."""
_HEADER = struct.Struct(">cI")
_SIZE = struct.Struct(">II")
_ARRAY, _ERROR = b"A", b"E"
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from handler.isolation import serve; serve(sys.argv[2])"


def is_ordinary(data: bytes) -> bool:
    """Whether a picture is a JPEG or PNG that is decoded in the worker: not large, nothing odd about it.

    It looks at the structure alone. A picture that it misjudges is only decoded in the other place.
    """
    if len(data) > ORDINARY_BYTES:
        return False
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _is_ordinary_png(data)
    return data.startswith(b"\xff\xd8\xff") and _is_ordinary_jpeg(data)


def _is_ordinary_png(data: bytes) -> bool:
    if len(data) < 24 or not 0 < _product(data, ">II", 16) <= ORDINARY_PIXELS:
        return False
    at = 8
    for _ in range(ORDINARY_CHUNKS):
        if at + 12 > len(data):
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def _is_ordinary_jpeg(data: bytes) -> bool:
    if _scans(data) > ORDINARY_SCANS:
        return False
    at, frame = 2, False
    for _ in range(ORDINARY_SEGMENTS):
        if at + 9 > len(data) or data[at] != 0xFF:
            return False
        marker = data[at + 1]
        if marker == 0xDA:
            return frame
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame: depth, height, width
            frame = 0 < _product(data, ">HH", at + 5) <= ORDINARY_PIXELS
            if not frame:
                return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _scans(data: bytes) -> int:
    """How often FF DA stands in a JPEG, the marker of a scan: a ninth of the time that ``bytes.count`` takes."""
    pairs = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(each == 0xDAFF)) for each in pairs)


def _product(data: bytes, layout: str, at: int) -> int:
    first, second = struct.unpack_from(layout, data, at)
    return int(first) * int(second)


class IsolatedReader:
    """:meth:`Preprocessing.read` and :meth:`Preprocessing.view` that can't take their process down.

    Args:
        preprocessing: resize and crop.
        max_pixels: width times height of a picture at most.
        max_seconds: processor time at most for decoding a picture that isn't ordinary.

    Threads may share one; each has a decoding process of its own, which starts when it is needed and
    ends with this process.
    """

    def __init__(self, preprocessing: Preprocessing, max_pixels: int, max_seconds: int) -> None:
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels
        self.max_seconds = max_seconds
        self._own = threading.local()
        self._processes: set[subprocess.Popen[bytes]] = set()

    def read(self, data: bytes) -> npt.NDArray[np.uint8]:
        """What the network sees of a picture file: (crop, crop, 3) uint8, 0 to 255.

        Raises:
            InvalidImage, ImageTooLarge: see :func:`handler.images.decode`; also if the decoder crashed
                on it, or it took too much memory.
            ImageTooComplex: it took too long.
        """
        if is_ordinary(data):
            return self.preprocessing.read(data, self.max_pixels)
        return _array(self._ask(data, 0), self.preprocessing.crop)

    def view(self, data: bytes, side: int) -> View:
        """What the network sees of a picture file, and the same with ``side`` px; errors as for :meth:`read`."""
        if is_ordinary(data):
            return self.preprocessing.view(data, self.max_pixels, side)
        content = self._ask(data, side)
        width, height = _SIZE.unpack_from(content)
        pixels, crop = content[_SIZE.size :], self.preprocessing.crop
        return View(_array(pixels[: crop * crop * 3], crop), _array(pixels[crop * crop * 3 :], side), (width, height))

    def _ask(self, data: bytes, side: int) -> bytes:
        """What the decoding process makes of a picture."""
        process = self._process()
        expired = threading.Event()

        def end() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(self.max_seconds * WALL_FACTOR, end)
        timer.start()
        try:
            return self._exchange(process, data, side)
        except (OSError, EOFError):
            raise self._reason(process, data, expired.is_set()) from None
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the decoding processes."""
        for process in list(self._processes):
            self._end(process)

    __del__ = close

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """End a decoding process; its exit code, that of its own end if it had ended."""
        self._processes.discard(process)
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what wasn't written yet
                pipe.close()  # type: ignore[union-attr]  # both are pipes
        return process.wait()

    def _process(self) -> subprocess.Popen[bytes]:
        """The decoding process of this thread."""
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process in self._processes and process.poll() is None:
            return process
        settings = {
            **{"resize": self.preprocessing.resize, "crop": self.preprocessing.crop},
            **{"max_pixels": self.max_pixels, "max_seconds": self.max_seconds},
        }
        command = [sys.executable, "-I", "-c", _CODE, str(Path(__file__).parent.parent), json.dumps(settings)]
        # its stderr would be a way to fill the log: libtiff complains about each wrong tag
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._processes.add(process)
        self._own.process = process
        return process

    def _exchange(self, process: subprocess.Popen[bytes], data: bytes, side: int) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(_REQUEST.pack(len(data), side))
        process.stdin.write(data)
        process.stdin.flush()
        kind, length = _HEADER.unpack(_take(process.stdout, _HEADER.size))
        content = _take(process.stdout, length)
        if kind == _ERROR:
            name, message = json.loads(content)
            raise getattr(errors, name)(message)
        return content

    def _reason(self, process: subprocess.Popen[bytes], data: bytes, expired: bool) -> RequestError:
        """Why the decoding process ended in the middle of a picture; it is cleared away."""
        code = self._end(process)
        what = f"received a picture of {len(data):,} bytes (it begins with {data[:12]!r})"
        if expired or (os.name == "posix" and code == -signal.SIGXCPU):
            logger.warning("a picture of %d bytes took more than %d s to decode", len(data), self.max_seconds)
            return ImageTooComplex(
                f"{what} that takes more than {self.max_seconds} s to decode; save it anew with an ordinary program, "
                "or smaller"
            )
        logger.warning("the decoding process ended with %d on a picture of %d bytes", code, len(data))
        if os.name == "posix" and code == -signal.SIGKILL:
            return ImageTooLarge(f"{what} that takes more memory to decode than this machine has left; send it smaller")
        return InvalidImage(
            f"{what} that its decoder can't cope with; save it anew with an ordinary program, {ACCEPTED}"
        )


def _array(content: bytes, side: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(content, dtype=np.uint8).reshape(side, side, 3)  # (side, side, 3) uint8


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
    _limit_memory(chosen["max_pixels"])
    preprocessing = Preprocessing(chosen["resize"], chosen["crop"], (), ())
    while request := source.read(_REQUEST.size):
        length, side = _REQUEST.unpack(request)
        data = _take(source, length)
        _limit_time(chosen["max_seconds"])
        try:
            kind, content = _ARRAY, _decoded(preprocessing, data, chosen["max_pixels"], side)
        except RequestError as error:
            kind, content = _ERROR, json.dumps([error.type, str(error)]).encode()
        except MemoryError:
            message = (
                f"received a picture of {len(data):,} bytes that takes more memory to decode than its pixels explain; "
                "save it anew with an ordinary program, or smaller"
            )
            kind, content = _ERROR, json.dumps(["ImageTooLarge", message]).encode()
        target.write(_HEADER.pack(kind, len(content)))
        target.write(content)
        target.flush()
    sys.exit(0)


def _decoded(preprocessing: Preprocessing, data: bytes, max_pixels: int, side: int) -> bytes:
    if not side:
        return preprocessing.read(data, max_pixels).tobytes()
    view = preprocessing.view(data, max_pixels, side)
    return _SIZE.pack(*view.size) + view.array.tobytes() + view.enlarged.tobytes()


def _limit_memory(max_pixels: int) -> None:
    """So much more than now; and if the machine runs out of it, this process goes first, not the worker."""
    if sys.platform == "win32":  # pragma: no cover (Windows)
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # Linux alone
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        limit = used + SPARE_BYTES + max_pixels * BYTES_A_PIXEL
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit_time(seconds: int) -> None:
    """So much more processor time than was used; beyond, the kernel ends this process (SIGXCPU)."""
    if sys.platform == "win32":  # pragma: no cover (Windows)
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))
