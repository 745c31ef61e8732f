"""Decoding in a process of its own: what goes there, and that nothing that happens there harms the worker."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from PIL import Image

from handler import isolation
from handler.errors import ImageTooComplex, ImageTooLarge, InvalidImage, RequestError
from handler.isolation import IsolatedReader, is_ordinary
from handler.preprocessing import Preprocessing
from tests import hostile, pictures
from tests.golden import PACKAGED, Golden
from tests.pictures import ACCEPTED, Broken, Sample, jpeg, save

PREPROCESSING = Preprocessing(72, 64, (), ())
MAX_PIXELS = 100_000_000

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limits are POSIX's")


@pytest.fixture(scope="module")
def reader() -> Iterator[IsolatedReader]:
    """A reader for the whole module; whatever a test sends must leave it usable."""
    made = IsolatedReader(PREPROCESSING, MAX_PIXELS, 10)
    yield made
    made.close()


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ordinary: everything goes to the decoding process."""
    monkeypatch.setattr(isolation, "is_ordinary", lambda data: False)


def helper(reader: IsolatedReader) -> psutil.Process:
    """The decoding process of this thread."""
    return psutil.Process(reader._process().pid)


@pytest.mark.parametrize("golden", PACKAGED, ids=lambda g: g.name)
def test_photographs_are_ordinary(golden: Golden) -> None:
    assert is_ordinary(golden.path.read_bytes())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(save(pictures.noise(64, 64), "WEBP"), id="another-format"),
        pytest.param(jpeg() + bytes(isolation.ORDINARY_BYTES), id="many-bytes"),
        pytest.param(save(Image.new("L", (5000, 4000)), "PNG"), id="many-pixels-png"),
        pytest.param(save(Image.new("L", (5000, 4000)), "JPEG"), id="many-pixels-jpeg"),
        pytest.param(hostile.jpeg_of_scans(64, 33), id="many-scans"),
        pytest.param(hostile.jpeg_of_segments(100), id="many-segments"),
        pytest.param(hostile.png_of_chunks(2000), id="many-chunks"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="png-without-header"),
        pytest.param(b"\xff\xd8\xff\xda\0\2" + bytes(20), id="jpeg-without-frame"),
        pytest.param(jpeg()[:30], id="jpeg-cut-off"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_odd_or_large_is_not_ordinary(data: bytes) -> None:
    assert not is_ordinary(data)


@pytest.mark.parametrize(
    "data", [jpeg(), b"\xff\xd8\xff", b"\xff\xd8\xff\xda" + b"\xff\xda\0" * 7], ids=["one", "none", "both"]
)
def test_scans_are_counted_at_even_and_odd_places(data: bytes) -> None:
    assert isolation._scans(data) == data.count(b"\xff\xda")


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("sample", pictures.samples(), ids=lambda s: s.name)
def test_both_places_give_the_same_pixels(reader: IsolatedReader, sample: Sample) -> None:
    assert np.array_equal(reader.read(sample.data), PREPROCESSING.read(sample.data, MAX_PIXELS))
    here, there = PREPROCESSING.view(sample.data, MAX_PIXELS, 100), reader.view(sample.data, 100)
    assert np.array_equal(there.array, here.array) and np.array_equal(there.enlarged, here.enlarged)
    assert (there.size, there.enlarged.shape) == (here.size, (100, 100, 3))


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("case", pictures.broken(), ids=lambda c: c.name)
def test_both_places_say_the_same_of_a_broken_picture(reader: IsolatedReader, case: Broken) -> None:
    process = helper(reader)
    with pytest.raises(RequestError, match=case.message) as caught:
        reader.read(case.data)
    assert (caught.value.type, caught.value.status) == (case.type, case.status)
    assert process.is_running(), "a broken picture ended the process"


@pytest.mark.parametrize("bomb", hostile.bombs(), ids=lambda b: b.name)
def test_bomb_is_answered_within_its_limits(reader: IsolatedReader, bomb: hostile.Bomb) -> None:
    before = psutil.Process().memory_info().rss
    try:
        assert reader.read(bomb.data).shape == (64, 64, 3)
        answer = "served"
    except RequestError as error:
        answer = error.type
    assert answer == bomb.answer
    assert psutil.Process().memory_info().rss - before < 400e6, "the worker's memory grew"
    assert reader.read(jpeg()).shape == (64, 64, 3)


def test_too_much_work_ends_the_process_and_not_the_worker() -> None:
    reader = IsolatedReader(PREPROCESSING, MAX_PIXELS, 1)
    data = hostile.jpeg_of_scans(10_000, 4000)
    process = helper(reader)
    start = time.process_time()
    with pytest.raises(ImageTooComplex, match=r"that takes more than 1 s to decode; save it anew") as caught:
        reader.read(data)
    assert caught.value.status == 413
    assert time.process_time() - start < 1, "the worker did the work itself"
    assert not process.is_running()
    assert reader.read(save(pictures.noise(64, 64), "WEBP")).shape == (64, 64, 3)
    reader.close()


def test_process_that_hangs_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "WALL_FACTOR", 0.5)
    reader = IsolatedReader(PREPROCESSING, MAX_PIXELS, 1)
    process = helper(reader)
    process.suspend()
    with pytest.raises(ImageTooComplex):
        reader.read(save(pictures.noise(64, 64), "WEBP"))
    assert not process.is_running()
    reader.close()


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
    reader = IsolatedReader(PREPROCESSING, MAX_PIXELS, 10)
    data = save(pictures.noise(64, 64), "WEBP")
    assert reader.read(data).shape == (64, 64, 3)
    process = helper(reader)
    process.suspend()

    def end() -> None:
        process.send_signal(number)
        process.resume()

    timer = threading.Timer(0.3, end)
    timer.start()
    with pytest.raises(error, match=message):
        reader.read(data)
    timer.join()
    assert reader.read(data).shape == (64, 64, 3)
    reader.close()


def test_memory_of_the_process_is_limited() -> None:
    """A transparent WebP of a hundred times the pixels that the memory is for."""
    reader = IsolatedReader(PREPROCESSING, 1_000_000, 10)
    assert helper(reader).pid
    reader.read(save(pictures.noise(64, 64), "WEBP"))  # the limit is set by now
    limits = (helper(reader).rlimit(psutil.RLIMIT_AS), helper(reader).rlimit(psutil.RLIMIT_CORE))
    assert limits[0][0] < 2e9 and limits[0][1] == limits[0][0]
    assert limits[1] == (0, 0)
    reader.max_pixels = MAX_PIXELS
    with pytest.raises(RequestError) as caught:
        reader.read(save(Image.new("RGBA", (9999, 9999)), "WEBP", lossless=True, quality=0, method=0))
    assert caught.value.type in ("ImageTooLarge", "InvalidImage")
    reader.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's")
def test_process_goes_first_when_memory_runs_out(reader: IsolatedReader) -> None:
    reader.read(save(pictures.noise(64, 64), "WEBP"))
    with open(f"/proc/{helper(reader).pid}/oom_score_adj", encoding="ascii") as file:  # noqa: PTH123
        assert file.read().strip() == "1000"


def test_each_thread_has_its_own_process(reader: IsolatedReader) -> None:
    found = {helper(reader).pid}
    thread = threading.Thread(target=lambda: found.add(helper(reader).pid))
    thread.start()
    thread.join()
    assert len(found) == 2


def test_process_ends_with_its_reader() -> None:
    reader = IsolatedReader(PREPROCESSING, MAX_PIXELS, 10)
    process = helper(reader)
    del reader
    assert process.wait(timeout=10) is not None or not process.is_running()


def test_process_prints_nothing_and_reads_nothing_of_the_environment(
    reader: IsolatedReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.sep)
    assert re.search("-I", " ".join(helper(reader).cmdline()))
