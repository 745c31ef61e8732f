"""Predictions → a contact sheet: one self-contained HTML page with a thumbnail of each picture, sorted by label."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from handler.errors import RequestError
from scripts.lib.model_folder import write_atomically
from scripts.lib.predictions import Row
from scripts.lib.reporting.html import template, thumbnail


def write_sheet(path: Path, rows: Iterable[Row], progress: Callable[[], object] = lambda: None) -> None:
    """Write the page. Labels come in alphabetical order, the surest picture of each first, and errors last.

    The rows are held in memory, the thumbnails aren't: they are made as they are written.

    Args:
        path: the HTML file.
        rows: the best prediction of each picture, or its error.
        progress: called after each picture.
    """
    labels: defaultdict[str, list[Row]] = defaultdict(list)
    failed: list[Row] = []
    for row in rows:
        (failed if row.error else labels[row.label]).append(row)
    for of_label in labels.values():
        of_label.sort(key=lambda row: (-row.probability, row.path))
    groups = sorted(labels.items(), key=lambda item: (item[0].casefold(), item[0]))

    def picture(row: Row) -> str:
        try:
            return thumbnail(Path(row.path))
        except (OSError, ValueError, RequestError):
            return ""  # it was there, and a picture, when it was predicted
        finally:
            progress()

    parts = template("sheet.html").generate(
        groups=groups,
        failed=failed,
        pictures=sum(map(len, labels.values())),
        thumbnail=picture,
        link=lambda row: _link(row.path, path.parent),
        name=lambda row: _printable(Path(row.path).name),
        shown=lambda row: _printable(row.path),
    )
    write_atomically(path, (part.encode() for part in parts))


def _link(path: str, start: Path) -> str:
    """The address of a picture as the page names it: relative, so that both may move together."""
    try:
        return quote(os.path.relpath(path, start).replace(os.sep, "/").encode("utf-8", "surrogateescape"))
    except ValueError:  # on another drive of Windows
        return Path(path).resolve().as_uri()


def _printable(text: str) -> str:
    """Text that can be written as UTF-8, whatever bytes a file's name holds."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
