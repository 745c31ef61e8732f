"""No server: what the same processor does with the same pictures when nothing stands in front of the network."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from handler.card import ModelCard
from handler.preprocessing import Preprocessing
from handler.runtimes import load_runtime
from handler.topk import top_predictions
from scripts.lib.benchmarking.contenders import Answer, Contender, Picture, count
from scripts.lib.benchmarking.measure import Load, Plan, Probe, Sample, load_figures, memory_figures, timed
from scripts.lib.benchmarking.subject import Subject
from scripts.lib.console import CommandError
from scripts.lib.machine import usable_cores
from scripts.lib.model_folder import write_atomically
from scripts.lib.training.dataset import MAX_PIXELS

START_TIMEOUT = 120.0
"""Seconds that the processes may take to load the model."""
LOAD_TIMEOUT = 3600.0
"""Seconds that a loop over the pictures may take."""


@dataclass(frozen=True)
class _Task:
    """What a process of the loop needs, as it is sent to it."""

    card: ModelCard
    folder: Path
    weights: Path
    labels: Sequence[str]
    pictures: Sequence[tuple[str, bytes]]


class Bare(Contender):
    """Processes that decode, resize and infer in a loop, with the runtime and precision of ours, on the CPU.

    Args:
        workers: number of processes, None for one a core; each gets its share of the cores as threads.
    """

    def __init__(self, name: str, workers: int | None) -> None:
        self.name, self.what = name, "no server"
        cores = usable_cores()
        self.workers = workers or cores
        self.threads = max(1, cores // self.workers)
        self._workers: list[tuple[Any, Connection]] = []

    def prepare(self, subject: Subject, java_home: Path, folder: Path) -> None:
        self.what = (
            f"no server: {count(self.workers, 'process')} of {count(self.threads, 'thread')}, "
            f"{subject.settings}, in a loop over the pictures; measured once, the same figures at every concurrency"
        )
        for name, content in subject.converted.items():
            write_atomically(folder / name, content)
        card = replace(subject.card, threads_per_worker=self.threads)
        self._task = _Task(card, folder, subject.model.weights, subject.model.labels, ())

    def start(self, pictures: Sequence[Picture]) -> None:
        """Start the processes and wait until all have loaded the model.

        Raises:
            CommandError: one can't.
        """
        context = multiprocessing.get_context("spawn")  # a fresh interpreter each, as a server's workers are
        task = replace(self._task, pictures=[(picture.name, picture.content) for picture in pictures])
        turns = context.Value("q", 0)
        for _ in range(self.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, task, turns), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        self._turns = turns
        self._receive(START_TIMEOUT)

    def loop(self, requests: int) -> tuple[Load, list[Mapping[str, Answer]]]:
        """``requests`` pictures, each taken by the process that is free; and what each process says of them.

        Raises:
            CommandError: a process failed.
        """
        self._turns.value = 0
        begin = time.perf_counter()
        for _, connection in self._workers:
            connection.send(requests)
        told = self._receive(LOAD_TIMEOUT)
        seconds = time.perf_counter() - begin
        return Load(seconds, tuple(took for latencies, _ in told for took in latencies)), [said for _, said in told]

    def _receive(self, timeout: float) -> list[Any]:
        """What each process sends next."""
        received = []
        for _, connection in self._workers:
            try:
                message = connection.recv() if connection.poll(timeout) else f"no answer after {timeout:.0f} s"
            except (EOFError, OSError):
                message = "it died; is there enough memory?"
            if isinstance(message, str):
                raise CommandError(f"{self.name}: a process of the loop failed: {message}")
            received.append(message)
        return received

    def processes(self) -> list[psutil.Process]:
        found = []
        for process, _ in self._workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(process.pid))
        return found

    def stop(self) -> None:
        for process, connection in self._workers:
            connection.close()
            process.terminate()
            process.join()
        self._workers = []


class LoopProbe(Probe):
    """Takes the figures of the loop: throughput, time a picture, processor time and memory."""

    def __init__(self, contender: Bare, pictures: Sequence[Picture]) -> None:
        super().__init__(contender, pictures)
        self.bare = contender

    def rehearse(self) -> None:
        try:
            self.bare.start(self.pictures)
        finally:
            self.bare.stop()

    def measure(self, plan: Plan) -> Sample:
        try:
            self.bare.start(self.pictures)
            self._loop(plan.warm_up * self.bare.workers)
            load, cpu = timed(self.bare, lambda: self._loop(plan.requests))
            sample: Sample = {}
            for concurrency in plan.concurrencies:
                sample |= load_figures(f"c{concurrency}", load, cpu)
            return sample | memory_figures(self.bare, [process.pid for process in self.bare.processes()])
        finally:
            self.bare.stop()

    def _loop(self, requests: int) -> Load:
        load, said = self.bare.loop(requests)
        for each in said:
            for picture, answer in each.items():
                self.record(picture, answer)
        return load


def _work(connection: Connection, task: _Task, turns: Any) -> None:
    """A process of the loop: loads, says so, and goes through as many pictures as it is told to, again and again."""
    import torch

    try:
        preprocessing = Preprocessing.of(task.card)
        runtime = load_runtime(task.card, task.folder, task.weights, torch.device("cpu"))
        connection.send(())
        while True:
            requests = connection.recv()
            latencies: list[float] = []
            said: dict[str, Answer] = {}
            while (number := _next(turns)) < requests:
                name, content = task.pictures[number % len(task.pictures)]
                start = time.perf_counter()
                logits = runtime.logits(preprocessing.read(content, MAX_PIXELS)[None])  # (1, classes)
                (best,) = top_predictions(logits, task.labels, 1, task.card.temperature)[0]
                latencies.append(time.perf_counter() - start)
                said[name] = Answer(best.label, best.probability)
            connection.send((latencies, said))
    except (EOFError, BrokenPipeError):
        return  # the benchmark has ended
    except Exception as error:  # told there, in words
        connection.send(f"{type(error).__name__}: {error}")


def _next(turns: Any) -> int:
    """The number of the picture whose turn it is, over all processes."""
    with turns.get_lock():
        number: int = turns.value
        turns.value += 1
    return number
