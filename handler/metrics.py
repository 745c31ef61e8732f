"""What a worker reports: requests, stages, predictions, and that it is alive.

    worker: context.metrics → a line on standard output → Java → /metrics → Prometheus

A line costs some 40 µs of processor time, more where it interrupts a request. Histograms therefore get one observation
a batch, counters are added up, and both are reported together, every ``REPORT_SECONDS``. ``config/metrics.yaml`` names
the metrics.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import psutil
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from handler.body import header
from handler.errors import RequestError
from handler.responses import ANSWERED
from handler.topk import Prediction

logger = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
"""What is measured is lost if TorchServe kills the worker before it is reported."""
START_HEADER = "x-request-start"
"""When the front door passed the request on: ``t=`` and seconds since 1970 (nginx: ``"t=$msec"``)."""
MAX_WAIT_S = 600.0
FAILED = "InternalServerException"
"""The type with which TorchServe answers where the handler itself fails."""


class WorkerMetrics:
    """The metrics of one worker.

    Args:
        cache: TorchServe's ``context.metrics``.
        version: of the model; the label ``model_version``.
        worker: TorchServe's number of the worker; the label ``worker``.
    """

    def __init__(self, cache: Any, version: str, worker: str) -> None:
        self._cache = cache
        self._version = version
        self._worker = worker
        self._counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._observations: list[tuple[str, tuple[str, ...], float]] = []
        self._lock = threading.Lock()
        self._missing: set[str] = set()
        self._ready = 0.0
        for name in ("HandlerTime", "PredictionTime"):  # TorchServe's own, two lines a request
            try:
                cache.get_metric(name, MetricTypes.GAUGE)
            except MetricsCacheKeyError:
                cache.cache.setdefault(MetricTypes.GAUGE, {})[name] = _Unlisted()

    def started(self) -> None:
        """Report that the worker starts, before anything can fail."""
        self._report("densenet_worker_starts_total", MetricTypes.COUNTER, 1, self._worker)

    def ready(self) -> None:
        """Report that the worker is READY, and from now on every ``REPORT_SECONDS``, as long as it lives."""
        self._ready = time.monotonic()
        # a counter that begins at 0 shows its first error; one that appears with it has no rate
        self.count_answer(200, ANSWERED, 0)
        for error in RequestError.__subclasses__():
            self.count_answer(error.status, error.__name__, 0)
        self.count_answer(503, FAILED, 0)
        self.report()
        threading.Thread(target=self._keep_reporting, name="metrics", daemon=True).start()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Observe how long the block takes, as a stage of the batch."""
        start = time.perf_counter()
        yield
        self.observe_stage(name, time.perf_counter() - start)

    def observe_stage(self, name: str, seconds: float) -> None:
        """Observe the duration of a stage of the batch."""
        with self._lock:
            self._observations.append(("densenet_stage_seconds", (name,), round(seconds, 6)))

    def observe_predictions(self, pictures: Sequence[Sequence[Prediction]]) -> None:
        """Count the best classes of a batch, and observe the probability of its first picture's.

        Args:
            pictures: for each picture its predictions, best first.
        """
        with self._lock:
            for best, *_ in pictures:
                self._counts["densenet_predictions_total", (str(best.index), best.label)] += 1
            if pictures:
                uncertainty = round(1 - pictures[0][0].probability, 6)
                self._observations.append(("densenet_top_uncertainty", (), uncertainty))

    def count_answer(self, code: int, outcome: str, number: int = 1) -> None:
        """Count requests by HTTP status and outcome: ``ANSWERED``, or the type of the error."""
        with self._lock:
            self._counts["densenet_requests_total", (str(code), outcome)] += number

    def report(self) -> None:
        """Report what was measured since the last time, the uptime and the memory."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            observations, self._observations = self._observations, []
        for (name, labels), number in counts.items():
            self._report(name, MetricTypes.COUNTER, number, *labels)
        for name, labels, value in observations:
            self._report(name, MetricTypes.HISTOGRAM, value, *labels)
        uptime = round(time.monotonic() - self._ready, 3)
        self._report("densenet_worker_uptime_seconds", MetricTypes.GAUGE, uptime, self._worker)
        memory = psutil.Process().memory_info().rss
        self._report("densenet_worker_memory_bytes", MetricTypes.GAUGE, memory, self._worker)

    def _keep_reporting(self) -> None:
        while True:
            time.sleep(REPORT_SECONDS)
            self.report()

    def _report(self, name: str, kind: MetricTypes, value: float, *labels: str) -> None:
        try:
            metric = self._cache.get_metric(name, kind)
        except MetricsCacheKeyError:
            if name not in self._missing:
                self._missing.add(name)
                logger.warning("%s isn't reported: TorchServe's metrics_config isn't config/metrics.yaml", name)
            return
        metric.add_or_update(value, [self._version, *map(label_value, labels)])


class _Unlisted:
    """A metric that ``config/metrics.yaml`` leaves out: Java would drop its lines."""

    def add_or_update(self, *_: object) -> None:
        """Report nothing."""


def label_value(text: str) -> str:
    """``text`` without the characters that separate labels in TorchServe's lines; "-" if nothing is left."""
    return re.sub(r"[,:|\s]+", " ", text).strip() or "-"


def worker_number(arguments: Sequence[str] | None = None) -> str:
    """TorchServe's number of this worker, which ends its socket's name or is its port; "0" outside a worker.

    Args:
        arguments: the worker's command line; None: this process'.
    """
    arguments = sys.argv if arguments is None else arguments
    for option, value in pairwise(arguments):
        if option in ("--sock-name", "--port") and (match := re.search(r"\d+$", value)):
            return match[0]
    return "0"


def seconds_since_start(headers: Mapping[str, Any], now: float) -> float | None:
    """How long ago the front door passed the request on, in seconds; None if it doesn't say, or nothing sensible.

    Args:
        headers: the request's.
        now: seconds since 1970.
    """
    match = re.fullmatch(r"(?:t=)?(\d{9,11}(?:\.\d{1,6})?)", header(headers, START_HEADER))
    seconds = now - float(match[1]) if match else -1.0
    return seconds if 0 <= seconds <= MAX_WAIT_S else None
