"""What a person names on a command line, and the pictures that it stands for."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from scripts.lib.console import CommandError
from scripts.lib.pictures import count_pictures, picture_paths, told_left_out, walk_pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of files; also the current folder."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "b/1.webp", "b/.hidden/2.jpg", "c/._3.jpg", "c/3.jpg", "d[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    (tmp_path / "empty.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVERYTHING = ["a.PNG", "b/.hidden/2.jpg", "b/1.webp", "b.jpg", "c/3.jpg", "d[1].jpg"]


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Standard input that holds ``data``."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_folder_is_walked_in_the_order_of_its_paths(folder: Path) -> None:
    assert [str(p.relative_to(folder)) for p in walk_pictures(folder)] == EVERYTHING
    assert list(walk_pictures(folder)) == sorted(walk_pictures(folder))
    assert list(picture_paths(["."])) == EVERYTHING
    assert count_pictures(["."]) == len(EVERYTHING)


def test_a_folder_that_links_to_itself_ends(folder: Path) -> None:
    (folder / "c" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "c" / "link.jpg").symlink_to(folder / "b.jpg")
    (folder / "c" / "broken.jpg").symlink_to("nothing")
    assert list(picture_paths(["c"])) == ["c/3.jpg", "c/link.jpg"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "b").chmod(0)
    assert list(picture_paths(["."])) == ["a.PNG", "b.jpg", "c/3.jpg", "d[1].jpg"]
    assert capsys.readouterr().err == "warning: left out the folder b: Permission denied\n"


def test_patterns_are_expanded_here_too(folder: Path) -> None:
    assert list(picture_paths(["*.jpg"])) == ["b.jpg", "d[1].jpg"]
    assert list(picture_paths(["**/*.jpg"])) == ["b.jpg", "c/3.jpg", "d[1].jpg"]
    assert list(picture_paths([str(folder / "b*")])) == [
        *(str(folder / "b/.hidden/2.jpg"), str(folder / "b/1.webp"), str(folder / "b.jpg"))
    ]
    assert list(picture_paths(["d[1].jpg"])) == ["d[1].jpg"]  # a file of that name, not the pattern


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("b.jpg\nc/3.jpg\n", ["b.jpg", "c/3.jpg"]),
        ("path,label\nb.jpg,dog\n\nc/3.jpg,cat", ["b.jpg", "c/3.jpg"]),
        ("label,Path\ndog,b.jpg\ncat,c/3.jpg\nfox,\n", ["b.jpg", "c/3.jpg"]),
        ('\ufeffid;filename\r\n1;b.jpg\r\n2;"c/3.jpg"\r\n', ["b.jpg", "c/3.jpg"]),
        ("c\n", ["c/3.jpg"]),
        ('"a, b.jpg"\n', ["a, b.jpg"]),
        ("label\tImage Path\ndog, white\tb.jpg\n", ["b.jpg"]),
        ("file_name,label\nb.jpg,dog\n", ["b.jpg"]),
    ],
    ids=["bare", "path-column", "second-column", "semicolons-and-bom", "folder", "quoted", "tabs", "other-head"],
)
@pytest.mark.parametrize("name", ["list.csv", "LIST.TSV"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_csv_files_name_pictures(folder: Path, text: str, paths: list[str], name: str, encoding: str) -> None:
    (folder / name).write_text(text.lstrip("\ufeff") if encoding == "utf-16" else text, encoding=encoding)
    assert list(picture_paths([name])) == paths


def test_standard_input_names_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"b.jpg\r\n\n c/3.jpg\n\xff.jpg\nc")
    assert list(picture_paths(["a.PNG", "-"])) == ["a.PNG", "b.jpg", " c/3.jpg", os.fsdecode(b"\xff.jpg"), "c/3.jpg"]
    assert count_pictures(["a.PNG", "-"]) is None


def test_standard_input_may_be_that_of_find(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = folder / "line\nbreak.jpg"
    odd.touch()
    stdin(monkeypatch, b"b.jpg\0line\nbreak.jpg\0c\0")
    assert list(picture_paths(["-"])) == ["b.jpg", "line\nbreak.jpg", "c/3.jpg"]


def test_pictures_of_all_names_are_found_and_others_counted(folder: Path) -> None:
    names = ["IMG_1.HEIC", "2.heif", "3.jfif", "4.jpe", "5.ppm", "6.ico"]
    for name in (*names, "7.mov", "8.MOV", "Makefile", ".DS_Store"):
        (folder / "empty.jpg" / name).touch()
    left_out: Counter[str] = Counter()
    assert [Path(path).name for path in picture_paths(["empty.jpg"], left_out)] == sorted(names)
    assert told_left_out(left_out) == "left out 3 files (.mov, Makefile)"
    assert told_left_out(Counter({f".{at}": 10 - at for at in range(7)})).endswith("49 files (.0, .1, .2, .3, .4, …)")
    assert told_left_out(Counter([".txt"])) == "left out 1 file (.txt)"
    assert told_left_out(Counter()) == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty.jpg", "the folder empty.jpg holds no pictures; expected files like .jpg, .png or .webp"),
        ("nothing*", "the pattern nothing* matches no picture; expected files like .jpg, .png or .webp"),
        ("empty.csv", "empty.csv holds no paths; expected files like .jpg, .png or .webp"),
        (
            "missing.csv",
            "the list missing.csv can't be read: No such file or directory; expected a CSV file in UTF-8 or "
            "UTF-16 with the paths of pictures in its first column, or in one that is called path",
        ),
        (
            "-",
            "received binary data on standard input; expected the paths of pictures, one a line, or those of "
            "find -print0 (a picture itself: name its file, or send it with curl -T -)",
        ),
    ],
)
def test_what_stands_for_no_picture_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (folder / "empty.csv").write_text("path\n", encoding="utf-8")
    stdin(monkeypatch, b"\x89PNG\r\n\0\0\0")
    with pytest.raises(CommandError) as caught:
        list(picture_paths([source]))
    assert str(caught.value) == message


def test_other_encodings_of_a_list_are_told(folder: Path) -> None:
    (folder / "list.csv").write_bytes("Bächli.jpg\n".encode("latin-1"))
    with pytest.raises(CommandError, match=r"the list list\.csv can't be read: .* expected a CSV file in UTF-8"):
        list(picture_paths(["list.csv"]))


def test_a_person_at_a_terminal_is_told_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b"x.jpg\n")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.delenv("TERM", raising=False)
    assert list(picture_paths(["-"])) == ["x.jpg"]
    assert capsys.readouterr().err == "paths of pictures, one a line; Ctrl-D ends them\n"
