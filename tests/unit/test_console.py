"""What a person sees: colours and redrawn lines on a terminal alone, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import sys

import pytest

from scripts.lib.console import CLEAR, Progress, complain, is_terminal, paint, warn
from scripts.lib.environment import run


class Terminal:
    """Standard error as a person sees it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._seen = capsys, ""

    def look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From here on it is a terminal; in the test, whose standard error isn't that of its fixtures."""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def getvalue(self) -> str:
        """All that was written."""
        self._seen += self._capsys.readouterr().err
        return self._seen


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """A terminal of today."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal(capsys)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, in a list of one, that go by as the test says."""
    now = [100.0]
    monkeypatch.setattr("scripts.lib.console.time.monotonic", lambda: now[0])
    return now


def test_errors_are_red_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.look(monkeypatch)
    complain("no")
    warn("careful")
    assert terminal.getvalue() == f"{CLEAR}\033[1;31merror:\033[0m no\n{CLEAR}\033[1;33mwarning:\033[0m careful\n"


def test_no_color_is_honoured(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.look(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red", sys.stderr) == "x"
    monkeypatch.setenv("NO_COLOR", "")  # empty: as if it weren't set (no-color.org)
    assert paint("x", "red", sys.stderr) == "\033[1;31mx\033[0m"


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.look(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(sys.stderr)
    complain("no")
    assert terminal.getvalue() == "error: no\n"


def test_elsewhere_nothing_is_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    complain("no")
    assert capsys.readouterr().err == "error: no\n"


def test_progress_on_a_terminal_is_one_line(
    terminal: Terminal, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.look(monkeypatch)
    progress = Progress("predicting", 4, " pictures", rate=True)
    for _ in range(4):
        clock[0] += 0.5
        progress.advance()
    assert terminal.getvalue().split(CLEAR)[1:] == [
        "predicting: 1/4 pictures (25 %), 2.0 pictures/s, 2 s left",
        "predicting: 2/4 pictures (50 %), 2.0 pictures/s, 1 s left",
        "predicting: 3/4 pictures (75 %), 2.0 pictures/s, 0 s left",
        "predicting: 4/4 pictures (100 %), 2.0 pictures/s, took 2 s\n",
    ]


def test_progress_elsewhere_is_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("working", 100)
    for _ in range(100):
        clock[0] += 0.5
        progress.advance()
    assert capsys.readouterr().err == (
        "working: 40/100 (40 %), 30 s left\nworking: 80/100 (80 %), 10 s left\nworking: 100/100 (100 %), took 50 s\n"
    )


def test_progress_without_a_total_tells_the_rate(
    terminal: Terminal, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.look(monkeypatch)
    progress = Progress("predicting", None, " pictures", rate=True)
    clock[0] += 2
    progress.advance(by=8)
    assert terminal.getvalue() == f"{CLEAR}predicting: 8 pictures, 4.0 pictures/s"
    progress.finish()
    assert terminal.getvalue().endswith(f"{CLEAR}predicting: 8/8 pictures (100 %), 4.0 pictures/s, took 2 s\n")


def test_text_that_a_stream_cannot_encode_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    odd = os.fsdecode(b"B\xc3\xa4chli \xff.jpg")
    utf8, ascii_ = b"B\xc3\xa4chli \xff.jpg \xe2\x82\xac\n", rb"B\xe4chli \udcff.jpg \u20ac" + b"\n"
    for encoding, expected in (("utf-8", utf8), ("ascii", ascii_)):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(sys, "argv", ["x.py"])
        monkeypatch.setenv("DENSENET_NO_VENV", "1")
        monkeypatch.setenv("NO_PROXY", "example.com")
        with pytest.raises(SystemExit) as caught:
            run(argparse.ArgumentParser, lambda args: int(bool(print(f"{odd} €"))))
        assert caught.value.code == 0
        assert out.buffer.getvalue() == expected
        assert os.environ["NO_PROXY"] == "example.com,127.0.0.1,localhost,::1"
