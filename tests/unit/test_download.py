"""Downloads against real HTTP servers on this machine, each with one way to misbehave."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts import fetch_example
from scripts.lib import download as module
from scripts.lib import paths
from scripts.lib.console import CommandError
from scripts.lib.download import DownloadError, download
from tests.support.machine.ports import free_ports
from tests.support.machine.waiting import wait_until

CONTENT = random.Random(0).randbytes(300 * 1024)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
KEPT = HALF // module.CHUNK * module.CHUNK
"""Bytes that arrive of the half: the chunk in which the line breaks is lost."""


class Host:
    """A server on a free port; ``answer`` is what it does with a GET, ``ranges`` what was asked for."""

    def __init__(self) -> None:
        self.answer: Callable[[Any], None] = whole
        self.ranges: list[str | None] = []
        self.release = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.ranges.append(self.headers.get("Range"))
                self.host = host
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has left
                    host.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/file.bin"

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def send(handler: Any, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler: Any) -> None:
    """A server that knows nothing of ranges."""
    send(handler, CONTENT)


def ranged(handler: Any) -> None:
    """A server that knows ranges."""
    asked = handler.headers.get("Range")
    if not asked:
        return whole(handler)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start >= len(CONTENT):
        return send(handler, b"", 416, Content_Range=f"bytes */{len(CONTENT)}")
    send(handler, CONTENT[start:], 206, Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")


def cut(handler: Any) -> None:
    """Half of what was promised, then the connection is closed; the rest to those who ask for it."""
    if handler.headers.get("Range"):
        return ranged(handler)
    send(handler, CONTENT[:HALF], length=len(CONTENT))


def cut_always(handler: Any) -> None:
    send(handler, CONTENT[:HALF], length=len(CONTENT))


def stalls(handler: Any) -> None:
    """Half, then nothing while the connection stays open."""
    if handler.headers.get("Range"):
        return ranged(handler)
    send(handler, CONTENT[:HALF], length=len(CONTENT))
    handler.host.release.wait(60)


def silent(handler: Any) -> None:
    """A server that accepts and never answers."""
    handler.host.release.wait(60)


def status(code: int) -> Callable[[Any], None]:
    return lambda handler: send(handler, b"<html>no</html>", code)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(module, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def host() -> Iterator[Host]:
    server = Host()
    yield server
    server.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "file.bin"


def fetch(url: str, target: Path, sha256: str = SHA256, **more: Any) -> Path:
    return download([url], target, sha256, what="the file", **more)


def failure(url: str, target: Path, **more: Any) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        fetch(url, target, **more)
    assert not target.exists()
    return caught.value


def part_of(target: Path) -> Path:
    return target.with_name("file.bin.part")


def leave_part(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(content)


@pytest.mark.parametrize("digits", [64, 8], ids=["whole-hash", "hash-prefix"])
def test_the_right_file_arrives_and_nothing_else_lies_beside_it(host: Host, target: Path, digits: int) -> None:
    assert fetch(host.url, target, SHA256[:digits]) == target
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == ["file.bin"]


def test_a_file_that_is_there_is_not_fetched_again(host: Host, target: Path) -> None:
    fetch(host.url, target)
    fetch(host.url, target)
    assert host.ranges == [None]


def test_a_file_with_another_content_is_replaced(host: Host, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    fetch(host.url, target)
    assert target.read_bytes() == CONTENT


def test_progress_is_drawn_on_a_terminal(
    host: Host, target: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(host.url, target)
    assert capsys.readouterr().err.endswith("the file: 300/300 KiB (100 %), took 0 s\n")


def test_a_wrong_hash_leaves_nothing_behind(host: Host, target: Path) -> None:
    error = failure(host.url, target, sha256="0" * 64, instead="use another one")
    assert str(error) == (
        f"the file can't be downloaded: {host.url} sent another file (300 KiB, SHA-256 {SHA256[:12]}…), perhaps a "
        "proxy's page or another version; expected a file with SHA-256 000000000000…; try again, or use another one"
    )
    assert os.listdir(target.parent) == []


def test_an_empty_answer_is_another_file(host: Host, target: Path) -> None:
    host.answer = lambda handler: send(handler, b"")
    assert "sent another file (0 bytes, SHA-256 e3b0c44298fc…)" in failure(host.url, target).reason


def test_a_transfer_that_is_cut_off_goes_on_where_it_stopped(
    host: Host, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.answer = cut
    fetch(host.url, target)
    assert target.read_bytes() == CONTENT
    assert host.ranges == [None, f"bytes={KEPT}-"]
    assert capsys.readouterr().err == f"warning: the file: {host.url} broke off after 144 KiB; trying again in 0 s\n"


def test_a_transfer_that_stalls_goes_on_where_it_stopped(
    host: Host, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "STALL_TIMEOUT_S", 0.2)
    host.answer = stalls
    fetch(host.url, target)
    assert target.read_bytes() == CONTENT
    assert host.ranges == [None, f"bytes={KEPT}-"]
    assert "stalled for 0.2 s after 144 KiB" in capsys.readouterr().err


def test_a_transfer_that_is_always_cut_off_is_given_up_and_resumed_by_the_next_call(host: Host, target: Path) -> None:
    host.answer = cut_always
    error = failure(host.url, target)
    assert str(error) == (
        f"the file can't be downloaded: {host.url} broke off after 144 KiB; expected a file with SHA-256 "
        f"{SHA256[:12]}…; try again (144 KiB are kept, and the download goes on from there)"
    )
    assert len(host.ranges) == 1 + len(module.RETRY_PAUSES_S)
    assert part_of(target).read_bytes() == CONTENT[:KEPT]
    host.answer = ranged
    fetch(host.url, target)
    assert host.ranges[-1] == f"bytes={KEPT}-"
    assert target.read_bytes() == CONTENT


def test_the_pause_before_each_attempt_grows(host: Host, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the pauses as they are
    pauses: list[float] = []
    monkeypatch.setattr(paths, "CACHE", target.parent / "cache")
    monkeypatch.setattr(time, "sleep", pauses.append)
    host.answer = cut_always
    failure(host.url, target)
    assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "left", "ranges"),
    [
        (ranged, CONTENT[:1000], ["bytes=1000-"]),
        (whole, CONTENT[:1000], ["bytes=1000-"]),
        (ranged, CONTENT + b"too much", [f"bytes={len(CONTENT) + 8}-", None]),
        (ranged, b"of another file", ["bytes=15-", None]),
        (ranged, CONTENT, []),
    ],
    ids=["resumed", "range-ignored", "416", "other-beginning", "complete"],
)
def test_what_an_interruption_left_is_used_or_replaced(
    host: Host, target: Path, answer: Callable[[Any], None], left: bytes, ranges: list[str | None]
) -> None:
    leave_part(target, left)
    host.answer = answer
    fetch(host.url, target)
    assert host.ranges == ranges
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()


def test_another_range_than_the_one_asked_for_is_not_appended(host: Host, target: Path) -> None:
    answers = iter([cut_always, lambda h: send(h, CONTENT[5:9], 206, Content_Range="bytes 5-8/9"), whole])

    def one_after_the_other(handler: Any) -> None:
        next(answers)(handler)

    host.answer = one_after_the_other
    fetch(host.url, target)
    assert host.ranges == [None, f"bytes={KEPT}-", None]
    assert target.read_bytes() == CONTENT


def test_redirects_are_followed(host: Host, target: Path) -> None:
    other = Host()
    host.answer = lambda handler: send(handler, b"", 302, Location=other.url)
    try:
        fetch(host.url, target)
    finally:
        other.close()
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [403, 404, 503])
def test_a_refusal_is_named_and_not_repeated(host: Host, target: Path, code: int) -> None:
    host.answer = status(code)
    words = {403: "Forbidden", 404: "Not Found", 503: "Service Unavailable"}[code]
    error = failure(host.url, target)
    assert error.reason == f"{host.url} answered {code} {words}"
    assert not part_of(target).exists()
    assert host.ranges == [None]


def body_late(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.host.release.wait(60)


def in_a_circle(handler: Any) -> None:
    """Redirects, each quick enough by itself, that never lead anywhere."""
    time.sleep(0.15)
    send(handler, b"", 302, Location=handler.host.url)


@pytest.mark.parametrize("answer", [silent, body_late, in_a_circle])
def test_the_first_byte_must_come_in_time(host: Host, target: Path, answer: Callable[[Any], None]) -> None:
    host.answer = answer
    error = failure(host.url, target, first_byte_timeout=1.2)
    assert error.reason == f"{host.url} sent nothing within 1 s"


def test_the_wait_for_a_first_byte_is_shared_by_all_addresses(host: Host, target: Path) -> None:
    host.answer = silent
    with pytest.raises(DownloadError) as caught:
        download([host.url] * 3, target, SHA256, what="the file", first_byte_timeout=1.5)
    assert caught.value.reason == "; ".join([f"{host.url} sent nothing within 0 s"] * 3)  # half a second each
    wait_until(lambda: len(host.ranges) == 3)


def test_an_address_that_fails_is_followed_by_the_next(host: Host, target: Path, tmp_path: Path) -> None:
    gone = (tmp_path / "gone.bin").as_uri()
    download([gone, host.url], target, SHA256, what="the file")
    assert target.read_bytes() == CONTENT


def test_a_refused_connection_is_named_without_the_password_in_the_address(target: Path) -> None:
    port = free_ports()
    error = failure(f"http://me:secret@127.0.0.1:{port}/f?token=secret", target)
    assert error.reason == f"http://127.0.0.1:{port}/f can't be reached: Connection refused"
    assert "secret" not in str(error)


def test_an_unknown_host_is_named(target: Path) -> None:
    error = failure("http://nowhere.invalid/file.bin", target)
    assert error.reason == "http://nowhere.invalid/file.bin has an unknown host name (no internet connection?)"


@pytest.mark.parametrize("url", ["dog.jpg", "ftp://host/dog.jpg", "http://[", "http:///dog.jpg"])
def test_what_is_no_address_is_refused(target: Path, url: str) -> None:
    with pytest.raises(CommandError) as caught:
        fetch(url, target)
    assert str(caught.value) == f"the file: {url!r} isn't an address; expected http://…, https://… or file:///…"


def test_a_file_address_is_copied(target: Path, tmp_path: Path) -> None:
    source = tmp_path / "with blank & ü.bin"
    source.write_bytes(CONTENT)
    leave_part(target, b"something else")
    fetch(source.as_uri(), target)
    assert target.read_bytes() == CONTENT
    assert source.read_bytes() == CONTENT


def test_a_file_address_without_a_file(target: Path, tmp_path: Path) -> None:
    source = tmp_path / "gone.bin"
    assert failure(source.as_uri(), target).reason == f"file://{source} can't be read: No such file or directory"


def test_a_place_that_cannot_be_written(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / "file" / "sub" / "file.bin"
    with pytest.raises(CommandError) as caught:
        fetch(host.url, target)
    assert str(caught.value) == (
        f"the file can't be written to {tmp_path / 'file' / 'sub'}: Not a directory; free space there, make it "
        "writable, or choose another place (DENSENET_CACHE moves the cache)"
    )


def test_a_cache_that_cannot_be_written(
    host: Host, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "file")
    with pytest.raises(CommandError) as caught:
        fetch(host.url, target)
    assert str(caught.value) == (
        f"the cache {tmp_path / 'file'} can't be written to: Not a directory; make it writable, or set DENSENET_CACHE "
        "to another folder"
    )


def test_a_full_disk_is_not_kept_full(host: Host, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    leave_part(target, CONTENT[:10])
    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(CommandError, match=r"the file can't be written to .*: No space left on device; free space"):
        fetch(host.url, target)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("sha256", ["", "abc", "A" * 64, "0" * 65])
def test_a_hash_that_checks_nothing_is_refused(target: Path, sha256: str) -> None:
    with pytest.raises(ValueError, match="sha256 must be 8 to 64 hex digits"):
        fetch("http://127.0.0.1/x", target, sha256)


def start_process(url: str, target: Path) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from scripts.lib.download import download; "
        "download([sys.argv[1]], Path(sys.argv[2]), sys.argv[3], what='the file')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, url, str(target), SHA256],
        cwd=paths.ROOT,
        env={**os.environ, "DENSENET_CACHE": str(paths.CACHE)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_waits_for_the_first(host: Host, target: Path) -> None:
    def slow(handler: Any) -> None:
        host.release.wait(60)
        whole(handler)

    host.answer = slow
    first = start_process(host.url, target)
    wait_until(lambda: len(host.ranges) == 1)
    second = start_process(host.url, target)
    assert second.stdout is not None
    waiting = second.stdout.readline()
    host.release.set()
    for process in (first, second):
        with process:
            process.communicate(timeout=60)
        assert process.returncode == 0
    assert waiting == "the file is being downloaded by another process; waiting for it\n"
    assert host.ranges == [None]
    assert target.read_bytes() == CONTENT


def test_a_killed_download_is_resumed(host: Host, target: Path) -> None:
    host.answer = stalls
    with start_process(host.url, target) as process:
        # what the file object still buffers isn't on the disk
        wait_until(lambda: part_of(target).exists() and part_of(target).stat().st_size > 0)
        process.kill()
    left = part_of(target).stat().st_size
    assert 0 < left <= HALF
    assert not target.exists()
    fetch(host.url, target)
    assert host.ranges == [None, f"bytes={left}-"]
    assert target.read_bytes() == CONTENT


# --- scripts/fetch_example.py ---


def fetch_the_example(*argv: str) -> int:
    return fetch_example.main(fetch_example.build_parser().parse_args(argv))


def test_the_example_is_fetched(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_example, "SHA256", SHA256)
    monkeypatch.chdir(tmp_path)
    assert fetch_the_example("--url", host.url) == 0
    assert (tmp_path / "images" / "dog.jpg").read_bytes() == CONTENT
    picture = Path("images/dog.jpg")
    assert capsys.readouterr().out == (
        f"{picture} is there; send it with: curl -T {picture} http://127.0.0.1:5000/predictions/densenet\n"
    )


def test_another_picture_is_not_taken_for_the_example(host: Host, tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        fetch_the_example("--url", host.url, "--to", str(tmp_path / "dog.jpg"))
    assert str(caught.value) == (
        f"the example picture can't be downloaded: {host.url} sent another file (300 KiB, SHA-256 {SHA256[:12]}…), "
        "perhaps a proxy's page or another version; expected a file with SHA-256 f3f87bb8ab3c…; try again, or use any "
        "photograph of a dog, or give --url file:///… or a mirror"
    )


def test_a_picture_of_ones_own_is_not_overwritten(host: Host, tmp_path: Path) -> None:
    own = tmp_path / "dog.jpg"
    own.write_bytes(b"mine")
    with pytest.raises(CommandError) as caught:
        fetch_the_example("--url", host.url, "--to", str(own))
    assert str(caught.value) == f"{own} exists and isn't the example picture; it stays: give another place with --to"
    assert own.read_bytes() == b"mine"
    assert host.ranges == []


def test_the_hash_is_that_of_the_samoyed() -> None:
    picture = paths.ROOT.parent / "shared" / "data" / "images" / "dog.jpg"
    if not picture.is_file():
        pytest.skip(f"no copy of the example picture at {picture}")
    assert hashlib.sha256(picture.read_bytes()).hexdigest() == fetch_example.SHA256
