"""A benchmark from its options to its report."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from scripts.lib.benchmarking.bare import Bare, LoopProbe
from scripts.lib.benchmarking.contenders import Contender, HttpContender, Picture
from scripts.lib.benchmarking.measure import Client, Plan, Probe, Sample
from scripts.lib.benchmarking.names import Wanted
from scripts.lib.benchmarking.plots import draw
from scripts.lib.benchmarking.registry import make_contender
from scripts.lib.benchmarking.report import (
    as_json,
    figures,
    load_average,
    machine_facts,
    markdown,
    now,
    summarise,
    versions,
)
from scripts.lib.benchmarking.subject import Subject
from scripts.lib.benchmarking.torchserve import check_installed
from scripts.lib.console import CommandError, Progress
from scripts.lib.environment import java_version
from scripts.lib.model_folder import json_bytes, write_atomically


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


def probe_of(contender: Contender, pictures: Sequence[Picture]) -> Probe:
    """What takes the figures of ``contender``."""
    if isinstance(contender, HttpContender):
        return Client(contender, pictures)
    if isinstance(contender, Bare):
        return LoopProbe(contender, pictures)
    raise TypeError(f"nothing measures a {type(contender).__name__}; expected an HttpContender or Bare")


def run_benchmark(
    subject: Subject,
    wanted: Sequence[Wanted],
    pictures: Sequence[Picture],
    plan: Plan,
    repeats: int,
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
    model = subject.model
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        contenders = [make_contender(each) for each in wanted]
        for number, contender in enumerate(contenders):
            folder = Path(temporary, str(number))
            folder.mkdir()
            contender.prepare(subject, java_home, folder)
        probes = [probe_of(contender, pictures) for contender in contenders]
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
        progress = Progress("benchmark", (repeats + 1) * len(probes), " starts")
        for probe in probes:
            probe.rehearse()
            progress.advance(note=probe.contender.name)
        for _ in range(repeats):
            for probe in probes:
                samples[probe.contender.name].append(probe.measure(plan))
                progress.advance(note=probe.contender.name)
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
            "note": subject.note,
        },
        "options": {
            "repeats": repeats,
            "requests": plan.requests,
            "concurrency": list(plan.concurrencies),
            "rates": list(plan.rates),
            "warm_up": plan.warm_up,
        },
        "pictures": [{"name": p.name, "bytes": len(p.content), "width": p.width, "height": p.height} for p in pictures],
        "contenders": {contender.name: contender.what for contender in contenders},
        "answers": {
            probe.contender.name: {name: dataclasses.asdict(answer) for name, answer in probe.answers.items()}
            for probe in probes
        },
        "samples": samples,
    }


def write_report(report: dict[str, Any], folder: Path | None) -> str:
    """Write ``benchmark.json``, ``benchmark.md`` and its plots into ``folder``, if there is one.

    Returns:
        The Markdown, without the plots.

    Raises:
        CommandError: the folder can't be written.
    """
    options = report["options"]
    rows = figures(options["concurrency"], options["rates"])
    text = markdown(report, rows)
    if folder is not None:
        plots = draw(summarise(report["samples"], rows), list(report["samples"]), options["concurrency"])
        shown = "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in plots)
        try:
            write_atomically(folder / "benchmark.json", json_bytes(as_json(report, rows)))
            write_atomically(folder / "benchmark.md", (text + shown).encode())
            for name, png in plots.items():
                write_atomically(folder / name, png)
        except OSError as error:
            raise CommandError(f"the report can't be written to {folder}: {error.strerror or error}") from None
    return text
