"""Where predictions are written, and how an interrupted file is gone on with, at whatever byte it was cut off."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest

from scripts.client import Answer, Prediction, Result, Unreadable
from scripts.lib.console import CommandError
from scripts.lib.predictions import CSV, JSON_LINES, LINES, Format, Paths, PredictionFile, PredictionStream, format_of
from scripts.lib.reporting.sheet import write_sheet
from tests.support.pictures.golden import CHELSEA

ODD = ['a "b", c.jpg', "tab\there.jpg", "Bächli 🐶.jpg", os.fsdecode(b"\xff\xfe.jpg"), "x" * 40]
FORMATS = [LINES, JSON_LINES, CSV]


def answer(label: str, topk: int | None) -> Answer:
    """An answer with as many predictions as were asked for."""
    top = tuple(Prediction(f"{label} {n}" if n else label, n, round(0.5 / (n + 1), 6)) for n in range(topk or 0))
    return Answer(label, 0, 0.5, top)


def results(topk: int | None, failing: bool) -> list[Result[str]]:
    """A result for each odd path; the third is an error."""
    return [
        Result(path, error=Unreadable("can't be read: it's gone, \"really\""))
        if failing and n == 2
        else Result(path, answer(f"läbel, {n}", topk))
        for n, path in enumerate(ODD)
    ]


@pytest.mark.parametrize("topk", [None, 1, 3])
@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_a_file_cut_off_anywhere_is_gone_on_with(tmp_path: Path, format_: Format, topk: int | None) -> None:
    everything = results(topk, failing=format_ is not LINES)
    whole = tmp_path / "whole"
    with PredictionFile(whole, format_, topk, resume=False) as file:
        for result in everything:
            file.write(result)
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, len(data), 3), len(data)]:
        cut.write_bytes(data[:length])
        with PredictionFile(cut, format_, topk, resume=True) as file:
            left = [result for result in everything if result.picture not in file.done]
            assert len(left) == len(everything) - file.pictures
            for result in left:
                file.write(result)
            assert file.pictures == len(everything)
            assert file.failed == (format_ is not LINES)
            if format_ is CSV:
                assert [row.path for row in file.rows()] == ODD
        assert cut.read_bytes() == data, length


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path, format_: Format) -> None:
    path = tmp_path / "there"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(CommandError, match=r"there exists; --resume goes on where it stopped, or choose another name"):
        PredictionFile(path, format_, None, resume=False)
    assert path.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_a_file_of_another_kind_is_not_gone_on_with(tmp_path: Path, format_: Format) -> None:
    path = tmp_path / "notes.txt"
    text = "dear diary,\nI saw three dogs\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CommandError, match=f"isn't a file of {format_.name} that this command wrote"):
        PredictionFile(path, format_, None, resume=True)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("format_", [JSON_LINES, CSV], ids=lambda f: f.name)
@pytest.mark.parametrize(("before", "now"), [(3, None), (3, 2), (2, 3), (None, 2)])
def test_a_file_of_another_topk_is_not_gone_on_with(
    tmp_path: Path, format_: Format, before: int | None, now: int | None
) -> None:
    path = tmp_path / "file"
    with PredictionFile(path, format_, before, resume=False) as file:
        for result in results(before, failing=False):
            file.write(result)
    with pytest.raises(CommandError, match="with the same --topk"):
        PredictionFile(path, format_, now, resume=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with PredictionFile(tmp_path / "file", LINES, None, resume=False) as file:
        file._file.close()
        file._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115 (the block closes it)
        with pytest.raises(CommandError, match=r"file can't be written: No space left on device; check the folder"):
            file.write(results(None, failing=False)[0])
    with pytest.raises(CommandError, match="can't be written: No such file or directory"):
        PredictionFile(tmp_path / "nowhere" / "file", CSV, None, resume=False)


def test_formats() -> None:
    one, three = answer("dog, big", None), answer("dog, big", 3)
    assert LINES.write(Result("a b.jpg", one)) == "a b.jpg\tdog, big\t0.5000\n"
    assert LINES.write(Result("a.jpg", three)).count("\n") == 3
    assert LINES.write(Result("a.jpg", error=Unreadable("x"))) == ""
    assert json.loads(JSON_LINES.write(Result("a.jpg", three))) == {"path": "a.jpg", **three.to_dict()}
    assert json.loads(JSON_LINES.write(Result("a.jpg", error=Unreadable("x")))) == {"path": "a.jpg", "error": "x"}
    rows = list(csv.DictReader(io.StringIO(CSV.head + CSV.write(Result("a,b.jpg", three)))))
    assert [(r["path"], r["rank"], r["label"]) for r in rows] == [
        ("a,b.jpg", "1", "dog, big"),
        ("a,b.jpg", "2", "dog, big 1"),
        ("a,b.jpg", "3", "dog, big 2"),
    ]


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.csv", CSV), ("a.CSV", CSV), ("a.jsonl", JSON_LINES), ("a.json", JSON_LINES), ("a.txt", LINES), (None, LINES)],
)
def test_the_name_of_a_file_says_its_format(name: str | None, format_: Format) -> None:
    assert format_of(Path(name) if name else None) is format_


def test_a_set_of_paths_takes_eight_bytes_each() -> None:
    paths = Paths()
    paths.fill(f"folder/{n}.jpg" for n in range(10_000))
    assert all(f"folder/{n}.jpg" in paths for n in range(10_000))
    assert not any(f"folder/{n}.jpg" in paths for n in range(10_000, 20_000))
    assert sys.getsizeof(paths._hashes) < 10_000 * 8 + 200


def test_a_stream_writes_at_once() -> None:
    stream = io.StringIO()
    with PredictionStream(stream, CSV, keep=True) as output:
        assert stream.getvalue() == CSV.head
        for n, result in enumerate(results(None, failing=True), 1):
            output.write(result)
            assert stream.getvalue().count("\n") == 1 + n
    assert (output.pictures, output.failed) == (5, 1)
    assert [row.path for row in output.rows()] == ODD


def test_a_contact_sheet_holds_every_picture(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = tmp_path / "in" / "a & b.png"
    picture.write_bytes(CHELSEA.read_bytes())
    stream = PredictionStream(io.StringIO(), LINES, keep=True)
    stream.write(Result(str(picture), Answer("Zebra <b>", 1, 0.25)))
    stream.write(Result(str(tmp_path / "gone.jpg"), Answer("Bengal", 1, 0.75)))
    stream.write(Result(str(picture), Answer("Bengal", 1, 0.9)))
    stream.write(Result(os.fsdecode(b"\xff.jpg"), error=Unreadable("can't be read: <no>")))
    counted: list[None] = []
    write_sheet(tmp_path / "sheet.html", stream.rows(), lambda: counted.append(None))
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.index("Bengal") < page.index("Zebra &lt;b&gt;")
    assert page.index("90.0 %") < page.index("75.0 %") < page.index("25.0 %")
    assert page.count("data:image/jpeg;base64,") == 2
    assert 'href="in/a%20%26%20b.png"' in page
    assert "can&#39;t be read: &lt;no&gt;" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert len(counted) == 3
