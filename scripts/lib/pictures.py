"""What a person names on a command line → the paths of pictures, one after the other."""

from __future__ import annotations

import codecs
import csv
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.lib.console import CommandError, is_terminal, warn

_SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .hif .ico .ppm .pgm .pbm .pnm"
)
SUFFIXES = frozenset(_SUFFIXES.split())
STDIN = "-"
_COLUMNS = "path filepath file filename image imagepath imagefile imagefilename imagename img imgpath picture photo"
PATH_COLUMNS = tuple(_COLUMNS.split())
"""Heads of the column of a CSV file that holds the paths; without one of them it is the first column."""
LISTS = (".csv", ".tsv")


def walk_pictures(folder: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """The picture files below ``folder``, by suffix, in the order of their paths.

    Args:
        folder: with all that is below.
        left_out: counts the suffixes of the other files that aren't hidden.

    Only the names in one folder at a time, and in those above it, are held in memory. Links to folders aren't followed.
    """
    try:
        with os.scandir(folder) as entries:
            # names alone: an entry is several times as large
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        warn(f"left out the folder {folder}: {error.strerror}")
        return
    for name, is_folder in names:
        path = folder / name
        if is_folder:
            yield from walk_pictures(path, left_out)
        elif path.suffix.lower() in SUFFIXES and not name.startswith("._") and path.is_file():
            yield path  # "._dog.jpg" is what macOS puts beside dog.jpg on foreign disks
        elif left_out is not None and not name.startswith("."):
            left_out[path.suffix.lower() or name] += 1


def picture_paths(sources: Sequence[str], left_out: Counter[str] | None = None) -> Iterator[str]:
    """The paths that ``sources`` stand for, in their order.

    Args:
        sources: picture files; folders, with all that is below; patterns like ``photos/**/*.jpg``; CSV or TSV files of
            paths; ``-``, paths on standard input, one a line, or each with a zero byte behind it (find -print0).
        left_out: as for :func:`walk_pictures`.

    Raises:
        CommandError: a folder, a pattern or a CSV file stands for no picture, or standard input holds no text.
    """
    for source in sources:
        if source == STDIN:
            for line in _standard_input():
                yield from _file_or_folder(line, left_out)
        elif Path(source).is_dir():
            yield from _checked(_file_or_folder(source, left_out), f"the folder {source} holds no pictures")
        elif source.lower().endswith(LISTS):
            yield from _checked(_rows(Path(source), left_out), f"{source} holds no paths")
        elif glob.has_magic(source) and not Path(source).exists():
            # the shell does this on Linux and macOS, unless the pattern is quoted or too long; on Windows it never does
            names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 (absolute patterns too)
            found = (path for name in names for path in _file_or_folder(name, left_out))
            yield from _checked(found, f"the pattern {source} matches no picture")
        else:
            yield source


def count_pictures(sources: Sequence[str]) -> int | None:
    """How many pictures ``sources`` stand for; None if that shows only when standard input ends."""
    return None if STDIN in sources else sum(1 for _ in picture_paths(sources))


def _file_or_folder(path: str, left_out: Counter[str] | None) -> Iterator[str]:
    return map(str, walk_pictures(Path(path), left_out)) if Path(path).is_dir() else iter([path])


def _checked(paths: Iterator[str], otherwise: str) -> Iterator[str]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        raise CommandError(f"{otherwise}; expected files like .jpg, .png or .webp")


def _rows(path: Path, left_out: Counter[str] | None) -> Iterator[str]:
    """The paths in a CSV file: of the column that is named for them, else of the first one."""
    try:
        with path.open("rb") as binary:
            wide = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel writes "Unicode text"
        with path.open(encoding="utf-16" if wide else "utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=next((mark for mark in "\t,;" if mark in head), ","))
            column = None
            for row in rows:
                if column is None:
                    names = [re.sub(r"[\s_-]", "", cell).lower() for cell in row]
                    column = next((names.index(name) for name in PATH_COLUMNS if name in names), None)
                    if column is not None:
                        continue
                    column = 0
                if len(row) > column and row[column].strip():
                    yield from _file_or_folder(row[column].strip(), left_out)
    except (OSError, ValueError, csv.Error) as error:
        raise CommandError(
            f"the list {path} can't be read: {getattr(error, 'strerror', None) or error}; expected a CSV file in "
            "UTF-8 or UTF-16 with the paths of pictures in its first column, or in one that is called path"
        ) from None


def _standard_input() -> Iterator[str]:
    if is_terminal(sys.stdin):
        end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
        print(f"paths of pictures, one a line; {end} ends them", file=sys.stderr, flush=True)
    for line in sys.stdin.buffer:
        if b"\0" in line:
            names = (line + sys.stdin.buffer.read()).split(b"\0")
            if os.path.lexists(names[0]):
                yield from (os.fsdecode(name) for name in names if name)
                return
            raise CommandError(
                "received binary data on standard input; expected the paths of pictures, one a line, or those of "
                "find -print0 (a picture itself: name its file, or send it with curl -T -)"
            )
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path.strip():
            yield path


def told_left_out(left_out: Counter[str]) -> str:
    """A line about files that are no pictures by their names; "" if there are none."""
    kinds = [kind for kind, _ in left_out.most_common(5)]
    more = ", …" if len(left_out) > len(kinds) else ""
    files = "file" if left_out.total() == 1 else "files"
    return f"left out {left_out.total()} {files} ({', '.join(kinds)}{more})" if left_out else ""
