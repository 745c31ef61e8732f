"""Predictions as text: lines, JSON lines or CSV; and the file of them that an interrupted command goes on with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from scripts.client import Answer, Prediction, Result
from scripts.lib.console import CommandError

COLUMNS = ("path", "rank", "label", "index", "probability", "error")


@dataclass(frozen=True)
class Row:
    """A row of a file of predictions: a prediction for a picture, or its error.

    ``rank``: 1 is the best, which is also what formats say that don't know. ``predictions``: how many the row holds
    itself, the best of them is told; 1 but for JSON.
    """

    path: str
    label: str = ""
    probability: float = 0.0
    error: str = ""
    rank: int = 1
    predictions: int = 1

    @classmethod
    def of(cls, result: Result[str]) -> Row:
        """The row that tells the most important of a result."""
        if result.answer is None:
            return cls(result.picture, error=str(result.error))
        return cls(result.picture, result.answer.label, result.answer.probability)


@dataclass(frozen=True)
class Format:
    """A way to write predictions: how one result is written, and how rows are read, each with the bytes up to its end.

    ``head`` is the first line of a file.
    """

    name: str
    write: Callable[[Result[str]], str]
    read: Callable[[Iterator[tuple[str, int]]], Iterator[tuple[Row, int]]]
    head: str = ""


def _predictions(answer: Answer) -> tuple[Prediction, ...]:
    return answer.top or (Prediction(answer.label, answer.index, answer.probability),)


def _write_lines(result: Result[str]) -> str:
    if result.answer is None:
        return ""  # it is told on stderr
    return "".join(f"{result.picture}\t{p.label}\t{p.probability:.4f}\n" for p in _predictions(result.answer))


def _read_lines(lines: Iterator[tuple[str, int]]) -> Iterator[tuple[Row, int]]:
    for line, end in lines:
        path, label, probability = line.rstrip("\n").rsplit("\t", 2)
        yield Row(path, label, float(probability)), end


def _write_json(result: Result[str]) -> str:
    what = {"error": str(result.error)} if result.answer is None else result.answer.to_dict()
    return json.dumps({"path": result.picture, **what}, ensure_ascii=False) + "\n"


def _read_json(lines: Iterator[tuple[str, int]]) -> Iterator[tuple[Row, int]]:
    for line, end in lines:
        data = json.loads(line)
        if "error" in data:
            yield Row(data["path"], error=str(data["error"])), end
        else:
            answer = Answer.from_json(data)
            predictions = len(_predictions(answer))
            yield Row(data["path"], answer.label, answer.probability, predictions=predictions), end


def _write_csv(result: Result[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if result.answer is None:
        writer.writerow([result.picture, "", "", "", "", str(result.error)])
    else:
        for rank, p in enumerate(_predictions(result.answer), 1):
            writer.writerow([result.picture, rank, p.label, p.index, p.probability, ""])
    return buffer.getvalue()


def _read_csv(lines: Iterator[tuple[str, int]]) -> Iterator[tuple[Row, int]]:
    end = 0

    def text() -> Iterator[str]:
        nonlocal end
        for line, after in lines:  # the reader may take several for a row
            end = after
            yield line

    for number, row in enumerate(csv.reader(text(), strict=True)):
        if number == 0:
            if tuple(row) != COLUMNS:
                raise ValueError(f"the columns are {','.join(row)[:80]}")
            continue
        path, rank, label, _, probability, error = row
        if error:
            yield Row(path, error=error), end
        else:
            yield Row(path, label, float(probability), rank=int(rank)), end


LINES = Format("lines", _write_lines, _read_lines)
JSON_LINES = Format("JSON lines", _write_json, _read_json)
CSV = Format("CSV", _write_csv, _read_csv, ",".join(COLUMNS) + "\n")
SUFFIXES = {".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON_LINES, ".csv": CSV}


def format_of(path: Path | None) -> Format:
    """The format that the name of a file asks for; ``LINES`` for any other name, and where there is no file."""
    return SUFFIXES.get(path.suffix.lower(), LINES) if path else LINES


class Paths:
    """A set of paths, in 8 bytes each: sorted 64-bit hashes.

    That any two of a million paths share one has odds of 1 to 30 million.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def fill(self, paths: Iterator[str]) -> None:
        """Hold ``paths`` instead of those before."""
        self._hashes = array("Q", sorted(array("Q", map(self._hash, paths))))

    def __contains__(self, path: str) -> bool:
        wanted = self._hash(path)
        at = bisect_left(self._hashes, wanted)
        return at < len(self._hashes) and self._hashes[at] == wanted

    @staticmethod
    def _hash(path: str) -> int:
        return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


class PredictionStream:
    """Predictions for a person or a program: each is written at once.

    ``pictures`` have been written, of which ``failed`` have no label; ``done`` were there before.

    Args:
        stream: where they go.
        format_: how they are written.
        keep: hold the rows, for :meth:`rows`.
    """

    def __init__(self, stream: TextIO, format_: Format, keep: bool = False) -> None:
        self.stream, self.format = stream, format_
        self.done = Paths()
        self.pictures = self.failed = 0
        self._kept: list[Row] | None = [] if keep else None
        stream.write(format_.head)

    def write(self, result: Result[str]) -> None:
        """Add a picture's result."""
        self.pictures += 1
        self.failed += result.answer is None
        if self._kept is not None:
            self._kept.append(Row.of(result))
        self.stream.write(self.format.write(result))
        self.stream.flush()

    def rows(self) -> Iterator[Row]:
        """The best prediction, or the error, of each picture."""
        return iter(self._kept or ())

    def __enter__(self) -> PredictionStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class PredictionFile:
    """The file that predictions are written to, a picture at a time, each at once and whole.

    ``pictures`` were asked for, or are in the file from before, of which ``failed`` have no label; ``done`` are those
    from before.

    Args:
        path: the file.
        format_: how they are written.
        topk: predictions that each picture gets, None if it isn't asked for.
        resume: go on with the file if it is there; what an interruption cut off is removed first.

    Raises:
        CommandError: it is there and ``resume`` isn't set, isn't such a file, or can't be written.
    """

    def __init__(self, path: Path, format_: Format, topk: int | None, resume: bool) -> None:
        self.path, self.format, self.topk = path, format_, topk
        self.done = Paths()
        self.pictures = self.failed = 0
        try:
            if path.exists() and path.stat().st_size and not resume:
                raise CommandError(
                    f"{path} exists; --resume goes on where it stopped, or choose another name for --output"
                )
            self._file: BinaryIO = path.open("ab", buffering=0)
            try:
                self._take_up()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, result: Result[str]) -> None:
        """Add a picture's result; it is in the file when this returns.

        Raises:
            CommandError: it can't be written.
        """
        self.pictures += 1
        self.failed += result.answer is None
        self._append(self.format.write(result))

    def rows(self) -> Iterator[Row]:
        """The best prediction, or the error, of each picture in the file.

        Raises:
            CommandError: the file isn't one of this format.
        """
        return (row for row, _ in self._complete())

    def _take_up(self) -> None:
        end = len(self.format.head)

        def paths() -> Iterator[str]:
            nonlocal end
            for row, after in self._complete():
                end = after
                self.pictures += 1
                self.failed += bool(row.error)
                yield row.path

        self.done.fill(paths())
        size = self.path.stat().st_size
        if size < len(self.format.head):
            os.truncate(self.path, 0)
            self._append(self.format.head)
        elif size > end:
            os.truncate(self.path, end)

    def _complete(self) -> Iterator[tuple[Row, int]]:
        """The first row of each picture that is in the file with all its rows, and the bytes up to the last of them."""
        expected = self.topk or 1
        first, found = Row(""), 0
        try:
            for row, end in self.format.read(self._lines()):
                first = first if found else row
                found += row.predictions
                if row.path != first.path or row.rank > expected or (found > expected and not row.error):
                    raise ValueError(f"the predictions for {first.path} aren't {expected}")
                if row.error or found == expected:
                    yield first, end
                    found = 0
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise CommandError(
                f"{self.path} isn't a file of {self.format.name} that this command wrote with the same --topk: "
                f"{error}; choose another name for --output"
            ) from None

    def _lines(self) -> Iterator[tuple[str, int]]:
        """The whole lines of the file, and the bytes up to the end of each; a last one without an end is left out."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
                    yield line.decode("utf-8", "surrogateescape"), end

    def __str__(self) -> str:
        return f"{self.path} holds {self.pictures} pictures"

    def _append(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "surrogateescape"))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> CommandError:
        return CommandError(
            f"{self.path} can't be written: {error.strerror}; check the folder and the space on the disk"
        )

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
