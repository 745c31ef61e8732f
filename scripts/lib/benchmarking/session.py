"""A benchmark from its options to its report."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from scripts.lib.benchmarking.contenders import CONTENDERS, Contender, check_installed
from scripts.lib.benchmarking.measure import Client, Picture, Sample, measure, start_timed
from scripts.lib.benchmarking.report import as_json, figures, load_average, machine_facts, markdown, now, versions
from scripts.lib.console import CommandError, Progress
from scripts.lib.environment import java_version
from scripts.lib.model_folder import ModelFolder, json_bytes, write_atomically

GENERATED_PX = (1546, 1213)
"""Width and height of the picture that is sent when none is given, those of pytorch/hub's ``dog.jpg``."""


def read_picture(path: Path) -> Picture:
    """A picture file.

    Raises:
        CommandError: it isn't there, or isn't a picture.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            return Picture(path.name, content, *image.size)
    except UnidentifiedImageError:
        raise CommandError(f"--picture {path}: not a picture; expected a JPEG, PNG or the like") from None
    except OSError as error:
        raise CommandError(f"--picture {path}: {error.strerror or error}; give the path of a picture") from None


def generated_picture() -> Picture:
    """A JPEG about as large and as detailed as a photograph (smooth shapes and grain); the same each time."""
    width, height = GENERATED_PX
    noise = np.random.default_rng(0)
    coarse = Image.fromarray(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    grain = noise.normal(0, 6, (height, width, 1))
    pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)  # (height, width, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return Picture("generated.jpg", buffer.getvalue(), width, height)


def run_benchmark(
    model: ModelFolder,
    names: Sequence[str],
    pictures: Sequence[Picture],
    repeats: int,
    requests: int,
    concurrencies: Sequence[int],
    java_home: Path,
) -> dict[str, Any]:
    """Start the contenders in turn, ``repeats`` times each, and measure them.

    Each is started once before, unmeasured, so that all find their files in the system's cache.

    Returns:
        The report: date, machine, versions, options, pictures, answers, and the samples in the
        order in which they were taken.

    Raises:
        CommandError: a contender doesn't start, or doesn't answer as it should.
    """
    check_installed()
    facts, date = machine_facts(), now()
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        contenders: list[Contender] = [CONTENDERS[name](name) for name in names]
        for contender in contenders:
            folder = Path(temporary, contender.name)
            folder.mkdir()
            contender.prepare(model, java_home, folder)
        clients = [Client(contender, pictures) for contender in contenders]
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        progress = Progress("benchmark", (repeats + 1) * len(clients), " starts")
        for contender in contenders:
            try:
                start_timed(contender)
            finally:
                contender.stop()
            progress.advance(note=contender.name)
        for _ in range(repeats):
            for client in clients:
                samples[client.contender.name].append(measure(client, requests, concurrencies))
                progress.advance(note=client.contender.name)
    return {
        "date": date,
        "machine": {**facts, "load_after": load_average()},
        "versions": versions(java_version(java_home)),
        "model": {
            "name": model.card.name,
            "architecture": model.card.architecture.name,
            "classes": model.card.num_classes,
            "crop": model.card.crop,
            "weights_sha256": model.card.weights_sha256,
        },
        "options": {"repeats": repeats, "requests": requests, "concurrency": list(concurrencies)},
        "pictures": [{"name": p.name, "bytes": len(p.content), "width": p.width, "height": p.height} for p in pictures],
        "contenders": {contender.name: contender.what for contender in contenders},
        "answers": {
            client.contender.name: {name: dataclasses.asdict(answer) for name, answer in client.answers.items()}
            for client in clients
        },
        "samples": samples,
    }


def write_report(report: dict[str, Any], folder: Path | None) -> str:
    """Write ``benchmark.json`` and ``benchmark.md`` into ``folder``, if there is one; returns the Markdown.

    Raises:
        CommandError: the folder can't be written.
    """
    rows = figures(report["options"]["concurrency"])
    text = markdown(report, rows)
    if folder is not None:
        try:
            write_atomically(folder / "benchmark.json", json_bytes(as_json(report, rows)))
            write_atomically(folder / "benchmark.md", text.encode())
        except OSError as error:
            raise CommandError(f"the report can't be written to {folder}: {error.strerror or error}") from None
    return text
