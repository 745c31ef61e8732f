"""What a person names on a command line → the paths of pictures, one after the other."""

from __future__ import annotations

import csv
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.lib.console import CommandError, is_terminal, warn

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
STDIN = "-"
PATH_COLUMNS = ("path", "file", "filename", "image")
"""Heads of the column of a CSV file that holds the paths; without one of them it is the first column."""


def walk_pictures(folder: Path) -> Iterator[Path]:
    """The picture files below ``folder``, by suffix, in the order of their paths.

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
            yield from walk_pictures(path)
        elif path.suffix.lower() in SUFFIXES and not name.startswith("._") and path.is_file():
            yield path  # "._dog.jpg" is what macOS puts beside dog.jpg on foreign disks


def picture_paths(sources: Sequence[str]) -> Iterator[str]:
    """The paths that ``sources`` stand for, in their order.

    Args:
        sources: picture files; folders, with all that is below; patterns like ``photos/**/*.jpg``; CSV files of
            paths; ``-``, paths on standard input, one a line.

    Raises:
        CommandError: a folder, a pattern or a CSV file stands for no picture, or standard input holds no text.
    """
    for source in sources:
        if source == STDIN:
            for line in _standard_input():
                yield from _file_or_folder(line)
        elif Path(source).is_dir():
            yield from _checked(_file_or_folder(source), f"the folder {source} holds no pictures")
        elif source.lower().endswith(".csv"):
            yield from _checked(_rows(Path(source)), f"{source} holds no paths")
        elif glob.has_magic(source) and not Path(source).exists():
            # the shell does this on Linux and macOS, unless the pattern is quoted or too long; on Windows it never does
            names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 (absolute patterns too)
            found = (path for name in names for path in _file_or_folder(name))
            yield from _checked(found, f"the pattern {source} matches no picture")
        else:
            yield source


def count_pictures(sources: Sequence[str]) -> int | None:
    """How many pictures ``sources`` stand for; None if that shows only when standard input ends."""
    return None if STDIN in sources else sum(1 for _ in picture_paths(sources))


def _file_or_folder(path: str) -> Iterator[str]:
    return map(str, walk_pictures(Path(path))) if Path(path).is_dir() else iter([path])


def _checked(paths: Iterator[str], otherwise: str) -> Iterator[str]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        raise CommandError(f"{otherwise}; expected files like .jpg, .png or .webp")


def _rows(path: Path) -> Iterator[str]:
    """The paths in a CSV file: of the column that is named for them, else of the first one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=";" if ";" in head and "," not in head else ",")
            column = None
            for row in rows:
                if column is None:
                    names = [cell.strip().lower() for cell in row]
                    column = next((names.index(name) for name in PATH_COLUMNS if name in names), None)
                    if column is not None:
                        continue
                    column = 0
                if len(row) > column and row[column].strip():
                    yield from _file_or_folder(row[column].strip())
    except (OSError, ValueError, csv.Error) as error:
        raise CommandError(
            f"the list {path} can't be read: {getattr(error, 'strerror', None) or error}; expected a CSV file in "
            "UTF-8 with the paths of pictures in its first column, or in one that is called path"
        ) from None


def _standard_input() -> Iterator[str]:
    if is_terminal(sys.stdin):
        end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
        print(f"paths of pictures, one a line; {end} ends them", file=sys.stderr, flush=True)
    for line in sys.stdin.buffer:
        if b"\0" in line:
            raise CommandError(
                "received binary data on standard input; expected the paths of pictures, one a line "
                "(a picture itself: name its file, or send it with curl -T -)"
            )
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path.strip():
            yield path
