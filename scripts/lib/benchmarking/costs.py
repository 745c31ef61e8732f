"""How the cost of a request grows: what is measured, in which order, and the machines that follow from it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from handler.card import ARCHITECTURES, ModelCard
from handler.images import decode
from handler.network import build_network
from handler.preprocessing import Preprocessing
from handler.runtimes import Runtime, has_bfloat16
from scripts.lib import conversion
from scripts.lib.archive import write_archive
from scripts.lib.benchmarking.contenders import Picture
from scripts.lib.benchmarking.cost_server import START_S, Load, measure_load, serving
from scripts.lib.benchmarking.photographs import GENERATED_PX, generated, of_size
from scripts.lib.benchmarking.report import Summary, load_average, machine_facts, now, versions
from scripts.lib.benchmarking.subject import untrained_model
from scripts.lib.console import Progress
from scripts.lib.environment import java_version
from scripts.lib.machine import usable_cores
from scripts.lib.model_folder import ModelFolder, read_model_folder
from scripts.lib.paths import BUNDLED
from scripts.lib.tracing import CPU
from scripts.lib.training.dataset import MAX_PIXELS

REFERENCE = "densenet121"
"""The architecture whose batches and requests are measured."""
PICTURES_PER_HOUR = 1_000_000
K = TypeVar("K")


@dataclass(frozen=True)
class Plan:
    """The points that are measured.

    Attributes:
        architectures: names of untrained networks; ``REFERENCE`` is among them.
        batches: pictures at a time.
        megapixels: sizes of the pictures that are read.
        concurrency: connections at a time, with one worker a core.
        all_workers: measure 1, 2, 4, … workers up to one a core; else only one, and one a core.
        call_s: seconds for which a computation is repeated.
        load_s: seconds of load on the server.
    """

    architectures: tuple[str, ...]
    batches: tuple[int, ...]
    megapixels: tuple[float, ...]
    concurrency: tuple[int, ...]
    all_workers: bool
    call_s: float
    load_s: float

    def workers(self, cores: int) -> tuple[int, ...]:
        """The numbers of workers on a machine of ``cores`` cores, ascending, one a core last."""
        powers = [2**n for n in range(cores.bit_length()) if 2**n < cores] if self.all_workers else [1]
        return tuple(sorted({*powers, cores}))


FULL = Plan(
    architectures=tuple(ARCHITECTURES),
    batches=(1, 2, 4, 8, 16, 32),
    megapixels=(0.05, 0.2, 0.8, 2, 5, 12, 24, 48),
    concurrency=(1, 2, 4, 8, 16, 32, 64, 128),
    all_workers=True,
    call_s=0.5,
    load_s=3.0,
)
QUICK = Plan(
    architectures=(REFERENCE,),
    batches=(1, 4),
    megapixels=(0.05, 0.8),
    concurrency=(1, 4),
    all_workers=False,
    call_s=0.1,
    load_s=1.0,
)


@dataclass(frozen=True)
class NetworkCost:
    """A network alone on one core: ``ms`` a picture; ``input_px`` is the side of what it sees."""

    name: str
    parameters: int
    input_px: int
    precision: str
    ms: Summary


@dataclass(frozen=True)
class BatchCost:
    """A batch of ``size`` pictures on one core: ``ms`` a picture."""

    size: int
    precision: str
    ms: Summary


@dataclass(frozen=True)
class PictureCost:
    """From a file of ``bytes`` bytes to the network's input, in ms: decoded at a reduced size, and at its full one."""

    width: int
    height: int
    bytes: int
    reduced_ms: Summary
    exact_ms: Summary


@dataclass(frozen=True)
class LoadCost:
    """A server with ``workers`` workers under ``concurrency`` connections; see :class:`cost_server.Load`."""

    model: str
    workers: int
    concurrency: int
    throughput: Summary
    p50_ms: Summary
    p95_ms: Summary
    p99_ms: Summary
    cpu_ms: Summary
    client_cpu_ms: Summary
    refused: Summary

    @classmethod
    def of(cls, model: str, workers: int, concurrency: int, loads: Sequence[Load]) -> LoadCost:
        """The medians and ranges of at least one load."""
        figures = [load.figures() for load in loads]
        summaries = {key: Summary.of([each[key] for each in figures]) for key in figures[0]}
        return cls(model, workers, concurrency, **summaries)


@dataclass(frozen=True)
class Machines:
    """What one machine does of a model, and how many of it :data:`PICTURES_PER_HOUR` take.

    Attributes:
        name: of the model.
        estimated: the requests weren't measured, but follow from those of ``REFERENCE``.
        cpu_ms: processor time of the server a request, in ms.
        throughput: requests/s of one machine.
        machines: as a number with decimals: round up for whole machines.
    """

    name: str
    estimated: bool
    cpu_ms: float
    throughput: float
    machines: float


@dataclass(frozen=True)
class Costs:
    """Everything that a run measured; ``facts`` are date, machine, versions and options."""

    facts: dict[str, Any]
    architectures: list[NetworkCost]
    batch: list[BatchCost]
    picture_size: list[PictureCost]
    workers: list[LoadCost]
    concurrency: list[LoadCost]
    bundled: list[LoadCost]
    machines: list[Machines]


def measure_costs(plan: Plan, picture: Picture | None, repeats: int, java_home: Path) -> Costs:
    """Measure every curve of ``plan``.

    Args:
        plan: the points.
        picture: for the server and, resized, for the cost of reading; None for generated ones.
        repeats: measurements of each point, at least 1; each repetition goes through all points of a curve.
        java_home: the Java that runs TorchServe.

    Raises:
        CommandError: the server doesn't start, or doesn't answer.
    """
    facts, date = machine_facts(), now()
    runtime = "openvino" if conversion.has_openvino() else "torch"
    precisions = ("float32", "bfloat16") if has_bfloat16(CPU) else ("float32",)
    sent = picture or generated(*GENERATED_PX)
    cores = usable_cores()
    with tempfile.TemporaryDirectory(prefix="costs-") as temporary:
        folder = Path(temporary)
        models = {name: untrained_model(name, folder / name) for name in plan.architectures}
        bundled = read_model_folder(BUNDLED)
        everything = [*models.values(), bundled]
        architectures = network_costs(everything, runtime, precisions, plan.call_s, repeats)
        batch = batch_costs(models[REFERENCE], runtime, precisions, plan.batches, plan.call_s, repeats)
        preprocessing = Preprocessing.of(models[REFERENCE].card)
        sizes = picture_costs(preprocessing, plan.megapixels, picture, plan.call_s, repeats)
        stores = {}
        for model in (models[REFERENCE], bundled):
            stores[model.card.name] = folder / "stores" / model.card.name
            write_archive(model, *conversion.convert(model, runtime, precisions[-1]), stores[model.card.name])
        loads = server_loads(plan, stores, bundled.card.name, sent.content, cores, repeats, java_home)
    rows = {key: LoadCost.of(*key, each) for key, each in loads.items()}
    two_each = {(REFERENCE, count, 2 * count) for count in plan.workers(cores)}
    return Costs(
        facts={
            "date": date,
            "machine": {**facts, "load_after": load_average()},
            "versions": versions(java_version(java_home))
            | ({"openvino": metadata.version("openvino")} if runtime == "openvino" else {}),
            "options": {"repeats": repeats, "call_s": plan.call_s, "load_s": plan.load_s, "workers": cores},
            "runtime": runtime,
            "precision": precisions[-1],
            "picture": {"name": sent.name, "bytes": len(sent.content), "width": sent.width, "height": sent.height},
            "resized_picture": picture.name if picture else None,
        },
        architectures=architectures,
        batch=batch,
        picture_size=sizes,
        workers=[row for key, row in rows.items() if key in two_each],
        concurrency=[rows[REFERENCE, cores, c] for c in plan.concurrency],
        bundled=[row for row in rows.values() if row.model == bundled.card.name],
        machines=machines_needed(architectures, list(rows.values()), precisions[-1]),
    )


# ---- the parts ---------------------------------------------------------------------------------


def loaded(model: ModelFolder, runtime: str, precision: str) -> Runtime:
    """The network of a model, ready on the processor with as many threads as a worker has."""
    with conversion.loaded(model, *conversion.convert(model, runtime, precision)) as ready:
        return ready


def pixels(card: ModelCard, count: int) -> np.ndarray:
    """Random pictures as the network sees them, (count, crop, crop, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, card.crop, card.crop, 3), dtype=np.uint8)


def call_ms(call: Callable[[], object], seconds: float) -> float:
    """The median time of a call, in ms, over ``seconds`` and at least two calls, after an unmeasured one."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def interleaved(what: str, calls: Mapping[K, Callable[[], object]], seconds: float, repeats: int) -> dict[K, Summary]:
    """Time of each call in ms: all of them in turn, ``repeats`` times, so that a slow minute hits them all."""
    times: dict[K, list[float]] = {key: [] for key in calls}
    progress = Progress(what, repeats * len(calls))
    for _ in range(repeats):
        for key, call in calls.items():
            times[key].append(call_ms(call, seconds))
            progress.advance()
    return {key: Summary.of(each) for key, each in times.items()}


def network_costs(
    models: Sequence[ModelFolder], runtime: str, precisions: Sequence[str], seconds: float, repeats: int
) -> list[NetworkCost]:
    """Time of each network alone, a picture at a time, in each precision."""
    calls = {
        (index, precision): partial(loaded(model, runtime, precision).logits, pixels(model.card, 1))
        for index, model in enumerate(models)
        for precision in precisions
    }
    times = interleaved("networks", calls, seconds, repeats)
    return [
        NetworkCost(models[i].card.name, _parameters(models[i].card), models[i].card.crop, precision, ms)
        for (i, precision), ms in times.items()
    ]


def batch_costs(
    model: ModelFolder,
    runtime: str,
    precisions: Sequence[str],
    sizes: Sequence[int],
    seconds: float,
    repeats: int,
) -> list[BatchCost]:
    """Time a picture of batches of ``sizes`` pictures, in each precision."""
    networks = {precision: loaded(model, runtime, precision) for precision in precisions}
    calls = {
        (p, size): partial(network.logits, pixels(model.card, size))
        for p, network in networks.items()
        for size in sizes
    }
    times = interleaved("batches", calls, seconds, repeats)
    return [
        BatchCost(size, precision, Summary(ms.median / size, ms.low / size, ms.high / size))
        for (precision, size), ms in times.items()
    ]


def picture_costs(
    preprocessing: Preprocessing,
    megapixels: Sequence[float],
    source: Picture | None,
    seconds: float,
    repeats: int,
) -> list[PictureCost]:
    """Time from the file to the network's input, for a JPEG of each size."""
    pictures = [of_size(size, source) for size in megapixels]
    calls: dict[tuple[int, str], Callable[[], object]] = {}
    for index, picture in enumerate(pictures):
        calls[index, "reduced"] = partial(preprocessing.read, picture.content, MAX_PIXELS)
        calls[index, "exact"] = partial(_exact, preprocessing, picture.content)
    times = interleaved("pictures", calls, seconds, repeats)
    return [
        PictureCost(picture.width, picture.height, len(picture.content), times[i, "reduced"], times[i, "exact"])
        for i, picture in enumerate(pictures)
    ]


def server_loads(
    plan: Plan,
    stores: Mapping[str, Path],
    bundled: str,
    content: bytes,
    cores: int,
    repeats: int,
    java_home: Path,
) -> dict[tuple[str, int, int], list[Load]]:
    """Loads on a server that is started anew for each repetition and number of workers.

    Args:
        plan: the points.
        stores: model store of ``REFERENCE`` and of the model ``bundled``.
        bundled: name of the second model, measured with one worker a core.
        content: the picture file that is sent.
        cores: workers at most.
        repeats: measurements of each point.
        java_home: the Java that runs TorchServe.

    Returns:
        Model, workers and concurrency to the loads.
    """
    points = {(REFERENCE, count): [2 * count] for count in plan.workers(cores)}
    points[REFERENCE, cores] = sorted({2 * cores, *plan.concurrency})
    points[bundled, cores] = sorted({2 * cores, 8 * cores} if plan.all_workers else {2 * cores})
    loads: dict[tuple[str, int, int], list[Load]] = {
        (*key, concurrency): [] for key, each in points.items() for concurrency in each
    }
    progress = Progress("server", repeats * len(loads))
    for repeat in range(repeats):
        for (name, workers), each in points.items():
            with serving(stores[name], java_home, workers) as server:
                measure_load(server.port, server.pid, content, 2 * workers, 1.0, START_S)
                # Java still gets faster with its first thousands of requests: every other repetition goes the other way
                for concurrency in each[:: -1 if repeat % 2 else 1]:
                    loads[name, workers, concurrency].append(
                        measure_load(server.port, server.pid, content, concurrency, plan.load_s)
                    )
                    progress.advance(note=f"{name}, {workers} workers, concurrency {concurrency}")
    return loads


def machines_needed(architectures: Sequence[NetworkCost], loads: Sequence[LoadCost], precision: str) -> list[Machines]:
    """How many machines like this one :data:`PICTURES_PER_HOUR` take, for each network.

    A model whose requests were measured counts with its highest median of requests/s. Of another one, a
    request takes what one of ``REFERENCE`` takes beside its network, and its own network's time; as many
    requests fit into a second as ``REFERENCE``'s processor time allows.

    Args:
        architectures: networks alone.
        loads: measured requests; those of ``REFERENCE`` are among them.
        precision: in which the server computed.
    """
    best: dict[str, LoadCost] = {}
    for load in loads:
        if load.model not in best or load.throughput.median > best[load.model].throughput.median:
            best[load.model] = load
    networks = {each.name: each.ms.median for each in architectures if each.precision == precision}
    reference = best[REFERENCE]
    beside = reference.cpu_ms.median - networks[REFERENCE]
    rows = []
    for name, network in networks.items():
        measured = best.get(name)
        cpu = measured.cpu_ms.median if measured else beside + network
        rate = measured.throughput.median if measured else reference.throughput.median * reference.cpu_ms.median / cpu
        rows.append(Machines(name, measured is None, cpu, rate, PICTURES_PER_HOUR / 3600 / rate))
    return rows


def _exact(preprocessing: Preprocessing, content: bytes) -> np.ndarray:
    """What :meth:`Preprocessing.read` gives, from the picture decoded at full size."""
    return preprocessing.to_array(decode(content, MAX_PIXELS))


def _parameters(card: ModelCard) -> int:
    network = build_network(card.architecture, card.num_classes)
    return sum(parameter.numel() for parameter in network.parameters())
