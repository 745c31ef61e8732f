"""Decoding in a process of its own: what goes there, and that nothing that happens there harms the worker."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
from PIL import Image

from handler import isolation, memory, reading
from handler.errors import ImageTooComplex, ImageTooLarge, InvalidImage, RequestError, ServerBusy
from handler.images import open_picture
from handler.isolation import BYTES_A_PIXEL, Share
from handler.preprocessing import Preprocessing, View
from handler.reading import PictureReader
from handler.responses import Response
from tests.support.hostile import http as hostile
from tests.support.pictures import made
from tests.support.pictures.made import ACCEPTED, Broken, Sample, jpeg, save

PREPROCESSING = Preprocessing(72, 64, (), ())
MAX_PIXELS = 100_000_000

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limits are POSIX's")


@pytest.fixture(scope="module")
def reader() -> Iterator[PictureReader]:
    """A reader for the whole module; whatever a test sends must leave it usable."""
    made = PictureReader(PREPROCESSING, MAX_PIXELS, 10)
    yield made
    made.close()


def views(reader: PictureReader, *pictures: bytes, side: int = 0, seconds: float = 30) -> list[View]:
    """The views of a request that can't be put off."""
    read = reader.read(pictures, side, time.monotonic() + seconds, instances=len(pictures) > 1)
    assert not isinstance(read, Response)
    return read


def pixels(reader: PictureReader, data: bytes) -> np.ndarray:
    """What the network sees of a picture."""
    return views(reader, data)[0].array


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ordinary: everything goes to the decoding process."""
    monkeypatch.setattr(reading, "ordinary", lambda *_: None)


def helper(reader: PictureReader) -> psutil.Process:
    """The decoding process that the next picture gets."""
    process = reader.process()
    process.wait_until_ready()
    reader.give_back(process)
    return psutil.Process(process.pid)


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("sample", made.samples(), ids=lambda s: s.name)
def test_both_places_give_the_same_pixels(reader: PictureReader, sample: Sample) -> None:
    assert np.array_equal(pixels(reader, sample.data), PREPROCESSING.read(sample.data, MAX_PIXELS))
    here = PREPROCESSING.view(open_picture(sample.data, MAX_PIXELS), MAX_PIXELS, 100)
    (there,) = views(reader, sample.data, side=100)
    assert np.array_equal(there.array, here.array) and np.array_equal(there.enlarged, here.enlarged)
    assert (there.size, there.enlarged.shape) == (here.size, (100, 100, 3))


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("case", made.broken(), ids=lambda c: c.name)
def test_both_places_say_the_same_of_a_broken_picture(reader: PictureReader, case: Broken) -> None:
    process = helper(reader)
    with pytest.raises(RequestError, match=case.message) as caught:
        pixels(reader, case.data)
    assert (caught.value.type, caught.value.status) == (case.type, case.status)
    assert process.is_running(), "a broken picture ended the process"


@pytest.mark.parametrize("bomb", hostile.bombs(), ids=lambda b: b.name)
def test_bomb_is_answered_within_its_limits(reader: PictureReader, bomb: hostile.Bomb) -> None:
    before = psutil.Process().memory_info().rss
    try:
        assert pixels(reader, bomb.data).shape == (64, 64, 3)
        answer = "served"
    except RequestError as error:
        answer = error.type
    assert answer == bomb.answer
    assert psutil.Process().memory_info().rss - before < 400e6, "the worker's memory grew"
    assert pixels(reader, jpeg()).shape == (64, 64, 3)


def test_too_much_work_ends_the_process_and_not_the_worker() -> None:
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 1)
    data = hostile.jpeg_of_scans(10_000, 4000)
    process = helper(reader)
    start = time.process_time()
    with pytest.raises(ImageTooComplex, match=r"that takes more than 1 s to decode; save it anew") as caught:
        pixels(reader, data)
    assert caught.value.status == 413
    assert time.process_time() - start < 1, "the worker did the work itself"
    assert not process.is_running()
    assert pixels(reader, save(made.noise(64, 64), "WEBP")).shape == (64, 64, 3)
    reader.close()


def test_the_pictures_of_a_request_have_one_budget() -> None:
    """Each of them would do by itself; 20 of them would hold a worker until it is killed."""
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 2)
    data = hostile.jpeg_of_scans(2000, 2000)
    assert views(reader, data), "one of them fits"
    message = r"^instance (\d+): received 20 pictures that take more than 2 s of processor time to decode, which"
    with pytest.raises(ImageTooComplex, match=message) as caught:
        views(reader, *[data] * 20)
    number = re.match(message, str(caught.value))
    assert number is not None and 1 <= int(number[1]) < 15
    assert caught.value.status == 413
    reader.close()


def test_ordinary_pictures_hold_the_worker_for_so_long_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of them goes to the decoding process, which can be put off."""
    monkeypatch.setattr(reading, "WORKER_SECONDS", 0.05)
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 10)
    data = save(Image.new("RGB", (1500, 1500)), "PNG")
    start = time.thread_time()
    seen = views(reader, *[data] * 40)
    assert time.thread_time() - start < 0.5
    assert len(seen) == 40 and all(np.array_equal(view.array, seen[0].array) for view in seen)
    assert sum(helper(reader).cpu_times()[:2]) > 0.05
    reader.close()


def test_process_that_hangs_is_ended_by_the_clock() -> None:
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 1)
    process = helper(reader)
    process.suspend()
    with pytest.raises(ServerBusy, match="try again later") as caught:
        views(reader, save(made.noise(64, 64), "WEBP"), seconds=0.5)
    assert caught.value.headers == {"Retry-After": "2", "X-Densenet-Slow": "1"}
    assert not process.is_running()
    reader.close()


def test_without_files_or_threads_a_picture_is_told_to_try_again(
    reader: PictureReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.close()
    data = save(made.noise(64, 64), "WEBP")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(ServerBusy, match=r"can't start a process .* \(Too many open files\); try again") as caught:
            pixels(reader, data)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "2", "X-Densenet-Busy": "1"})

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(ServerBusy, match=r"can't start new thread"):
        patch.setattr(threading.Thread, "start", start)
        pixels(reader, data)
    assert pixels(reader, data).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        pytest.param(
            signal.SIGSEGV, InvalidImage, rf"that its decoder can't cope with; save it anew .*, {ACCEPTED}$", id="crash"
        ),
        pytest.param(signal.SIGKILL, ImageTooLarge, r"that takes more memory to decode than this machine", id="memory"),
    ],
)
def test_death_of_the_process_is_one_requests_error(
    number: signal.Signals, error: type[RequestError], message: str
) -> None:
    """SIGSEGV is what a broken decoder ends with, SIGKILL what the kernel sends when memory runs out."""
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 10)
    data = save(made.noise(64, 64), "WEBP")
    assert pixels(reader, data).shape == (64, 64, 3)
    process = helper(reader)
    process.suspend()

    def end() -> None:
        process.send_signal(number)
        process.resume()

    timer = threading.Timer(0.3, end)
    timer.start()
    with pytest.raises(error, match=message):
        pixels(reader, data)
    timer.join()
    assert pixels(reader, data).shape == (64, 64, 3)
    reader.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's")
def test_memory_of_the_process_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a picture needs more than its head tells."""
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 10)
    monkeypatch.setattr(reader, "share", lambda: Share(5 * 10**7, 10**8))
    pixels(reader, save(made.noise(64, 64), "WEBP"))  # the limit is set by now
    process = helper(reader)
    assert process.rlimit(psutil.RLIMIT_AS)[0] < 3e8
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    with pytest.raises(ImageTooLarge, match=r"takes about 612 MB of memory to decode; this server has 100 MB for one"):
        pixels(reader, save(Image.new("RGBA", (6000, 6000)), "WEBP", lossless=True, quality=0, method=0))
    with pytest.raises(RequestError) as caught:
        pixels(reader, hostile.tiff_of_tile(65_520, 65_520))
    assert caught.value.type in ("ImageTooLarge", "InvalidImage")
    assert process.is_running()
    reader.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's")
def test_the_time_of_one_picture_is_no_limit_of_the_next(reader: PictureReader) -> None:
    data = save(made.noise(64, 64), "WEBP")
    process = reader.process()
    before = psutil.Process().rlimit(psutil.RLIMIT_CPU)[1]
    for seconds in (5, 50):
        process.decode(data, 0, Share(5 * 10**7, 10**8), seconds)
        soft, hard = psutil.Process(process.pid).rlimit(psutil.RLIMIT_CPU)
        assert soft > seconds and hard == before
    reader.give_back(process)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's")
def test_process_goes_first_when_memory_runs_out(reader: PictureReader) -> None:
    pixels(reader, save(made.noise(64, 64), "WEBP"))
    with open(f"/proc/{helper(reader).pid}/oom_score_adj", encoding="ascii") as file:  # noqa: PTH123
        assert file.read().strip() == "1000"


def test_threads_dont_share_a_process(reader: PictureReader) -> None:
    first, second = reader.process(), reader.process()
    assert first.pid != second.pid
    reader.give_back(first)
    assert reader.process() is first
    first.close()
    second.close()


def test_process_ends_with_its_reader() -> None:
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 10)
    process = helper(reader)
    del reader
    gc.collect()
    assert process.wait(timeout=10) is not None or not process.is_running()


def test_process_prints_nothing_and_reads_nothing_of_the_environment(
    reader: PictureReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.sep)
    assert re.search("-I", " ".join(helper(reader).cmdline()))


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (2, 1), (2, 3)])
def test_all_decoding_processes_of_a_server_fit_together(
    monkeypatch: pytest.MonkeyPatch, workers: int, threads: int
) -> None:
    """One decodes a large picture, all others small ones: each thread's, and that for slow work."""
    left = 1_500_000_000
    counted = Mock(return_value=workers)
    monkeypatch.setattr(memory, "own_bytes", lambda: 7)
    monkeypatch.setattr(memory, "workers", counted)
    monkeypatch.setattr(memory, "left", lambda *given: left if given == (7, workers) else 0)
    reader = PictureReader(PREPROCESSING, MAX_PIXELS, 10, threads=threads)
    share, processes = reader.share(), workers * (threads + 1)
    assert 0 < 4 * share.small < share.large
    assert (processes - 1) * share.small + share.large + processes * reading.PROCESS_BYTES == left
    assert reader.share() == share and counted.call_count == 1
    monkeypatch.setattr(reading, "COUNT_SECONDS", -1)
    left = 10**12
    most = MAX_PIXELS * BYTES_A_PIXEL
    assert reader.share() == Share(most, most) and counted.call_count == 2
    left = 0
    assert reader.share() == Share(0, 0)


def test_where_the_system_tells_no_sizes_memory_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert isolation._address_space.__wrapped__() is None
