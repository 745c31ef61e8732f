"""The TorchServe handler: drives a request through the modules of this package.

The file lies at the root of the archive, the package beside it, so that the imports are the same
there and in the repository.
"""

from __future__ import annotations

import gc
import io
import json
import logging
import math
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from handler.body import fields_of, header
from handler.card import CardError, ModelCard, check_labels
from handler.deferred import deferred
from handler.errors import InternalServerException, RequestError, printable
from handler.explanation import Explainer, ExplanationRequest
from handler.gradients import SECONDS
from handler.hold import requested_hold, wait_for_release
from handler.later import GRACE_S, OUTCOME, PATIENCE_S, Lane, may_defer, taken
from handler.metrics import FAILED, WorkerMetrics, seconds_since_start, worker_number
from handler.open_inference import (
    LENGTH_HEADER,
    InferPayload,
    Model,
    about_response,
    infer_body,
    infer_error_response,
    infer_response,
    parse_infer,
)
from handler.page import Page, wants_page
from handler.payload import Payload, parse
from handler.preprocessing import Preprocessing, View
from handler.reading import PictureReader, unpacked
from handler.responses import Response, describe_response, error_response, prediction_response
from handler.runtimes import load_runtime
from handler.topk import Prediction, top_predictions

with deferred():
    from ts.torch_handler.image_classifier import ImageClassifier

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 3
FRAMES = 10
"""Of the traceback of a request that failed, from its end, that are logged."""
HOLD_SECONDS = SECONDS + GRACE_S
"""How long a worker that is to be removed waits for its slow work to end."""
NOISE = ("Failed json decoding", "Failed utf-8 decoding")
"""What TorchServe logs, with a traceback of 30 lines, of each body that isn't the JSON or text that it is called."""


class DenseNetHandler(ImageClassifier):  # type: ignore[misc]  # TorchServe has no type hints
    """Serves a DenseNet: the best label of each picture.

    The frame of ``handle`` and the profiler are TorchServe's. What differs: the model card says what
    is loaded and how pictures are prepared, every request of a batch gets its own status, so that a
    broken picture harms nobody else, and metrics tell what became of it (``handler.metrics``).
    """

    topk = 1

    def initialize(self, context: Any) -> None:
        """Load card, labels and weights, check that they fit each other, and warm up.

        Raises:
            CardError: the archive contradicts itself; the worker doesn't start.
        """
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        self.context = context
        self.manifest = context.manifest
        self.metrics = WorkerMetrics(context.metrics, context.manifest["model"]["modelVersion"], worker_number())
        self.metrics.started()
        config = context.model_yaml_config or {}
        if "handler" not in config:
            raise CardError("model-config.yaml has no section 'handler:', the model card; build the archive anew")
        self.card = ModelCard.from_dict(config["handler"])
        self.max_pixels = _limit(config, "max_image_pixels")
        self.max_instances = _limit(config, "max_instances")
        mapping = json.loads((model_dir / "index_to_name.json").read_text(encoding="utf-8"))
        self.labels = check_labels(mapping, self.card)
        self.mapping = mapping
        gpu_id = properties.get("gpu_id")
        cuda = torch.cuda.is_available() and gpu_id is not None
        self.map_location = "cuda" if cuda else "cpu"
        self.device = torch.device(f"cuda:{gpu_id}" if cuda else "cpu")
        self.model_pt_path = str(model_dir / context.manifest["model"]["serializedFile"])
        compiler = (config.get("pt2") or {}).get("compile")
        self.runtime = load_runtime(self.card, model_dir, Path(self.model_pt_path), self.device, compiler)
        self.preprocessing = Preprocessing.of(self.card)
        threads = self.card.threads_per_worker
        self.lane = Lane(self.metrics.observe_stage)
        self.reader = PictureReader(
            *(self.preprocessing, self.max_pixels, _limit(config, "max_decode_seconds"), self.lane, threads)
        )
        self.max_wait = _limit(config, "max_wait_seconds")
        gradients = config["limits"].get("integrated_gradients")
        if not isinstance(gradients, bool):
            raise CardError(
                f"model-config.yaml: limits must hold integrated_gradients, true or false, is {gradients!r}"
            )
        self.explainer = Explainer(
            *(self.card, self.labels, self.runtime, Path(self.model_pt_path), self.device, gradients, self.lane)
        )
        self.page = Page(context.model_name, self.card, self.labels)
        self._payloads: list[Payload | ExplanationRequest | Response] = []
        self._held = False
        self.served = Model(context.model_name, context.manifest["model"]["modelVersion"])
        self._decoders = ThreadPoolExecutor(threads) if threads > 1 else None
        logging.getLogger().addFilter(_is_no_noise)
        self._warm_up()
        gc.freeze()  # what was loaded stays: no collection looks at it again
        self.initialized = True
        self.metrics.ready()
        logger.info(
            "%s is ready: %d classes, %s %s on %s",
            *(self.card.name, self.card.num_classes, self.runtime.name, self.runtime.precision, self.device),
        )

    def describe_handle(self) -> dict[str, Any]:
        """The model card, for ``GET /models/densenet?customized=true`` of the management API."""
        return self.card.to_dict()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """TorchServe's, with the time since the front door and failures reported; each body as bytes, encoded here."""
        headers = context.get_all_request_header(0)
        queued = seconds_since_start(headers, time.time())
        try:
            answers: list[bytes] = super().handle(data, context)
        except Exception as error:
            # TorchServe answers the whole batch so (ts.service)
            self.metrics.count_answer(507 if isinstance(error, MemoryError) else 503, FAILED, len(data))
            raise
        total = seconds_since_start(headers, time.time())
        if queued is not None and total is not None:
            self.metrics.observe_stage("queue", queued)
            self.metrics.observe_stage("total", total)
        return answers

    def preprocess(self, data: list[dict[str, Any]]) -> npt.NDArray[np.uint8]:
        """Parse and decode a batch of requests; what is wrong with one is kept for its answer.

        Args:
            data: a row a request.

        Returns:
            (P, crop, crop, 3), the pictures of all requests that can be served, in order.
        """
        hold = requested_hold(self._headers(0)) if len(data) == 1 else None
        self._held = hold is not None
        if hold:
            self.lane.finish(HOLD_SECONDS)
            wait_for_release(hold)
        self._payloads, arrays = [], []
        self._begin = time.monotonic()
        with self.metrics.stage("decode"):
            each = (self._decoders.map if self._decoders else map)(self._read, data, range(len(data)))
            for payload, pictures in each:
                self._payloads.append(payload)
                arrays += pictures
        size = self.card.crop
        return np.stack(arrays) if arrays else np.empty((0, size, size, 3), dtype=np.uint8)  # (P, crop, crop, 3)

    def inference(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits (P, classes) of a batch (P, crop, crop, 3); P may be 0."""
        if not len(data):
            return np.empty((0, self.card.num_classes), dtype=np.float32)
        with self.metrics.stage("inference"):
            return self.runtime.logits(data)  # (P, classes)

    def postprocess(self, data: npt.NDArray[np.float32]) -> list[bytes]:
        """One answer a request, with its own status and content type.

        Args:
            data: (P, classes) logits of the pictures that ``preprocess`` returned.
        """
        answers = []
        served: list[list[Prediction]] = []
        start = 0
        for index, payload in enumerate(self._payloads):
            logits = data[:0]  # (0, classes)
            if isinstance(payload, Payload):
                logits = data[start : start + len(payload.pictures)]  # (pictures, classes)
                start += len(payload.pictures)
            try:
                response, predictions = self._respond(payload, logits, header(self._headers(index), "accept"))
            except Exception as error:
                response = self._failure(error, {"id": payload.id} if isinstance(payload, InferPayload) else None)
                predictions = []
            served += predictions
            answers.append(self._answer(index, response))
        self.metrics.observe_predictions(served)
        return answers

    def _respond(
        self, payload: Payload | ExplanationRequest | Response, logits: npt.NDArray[np.float32], accept: str
    ) -> tuple[Response, list[list[Prediction]]]:
        """The answer of one request, and what it says of each picture; logits (pictures, classes)."""
        if isinstance(payload, Response):
            return payload, []
        if isinstance(payload, ExplanationRequest):
            with self.metrics.stage("explanation"):
                return self.explainer.respond(payload, accept), []
        predictions = top_predictions(logits, self.labels, payload.topk or self.topk, self.card.temperature)
        if isinstance(payload, InferPayload):
            return infer_response(payload, self.served, predictions), predictions
        return prediction_response(predictions, accept, payload.topk is not None, payload.instances), predictions

    def _failure(self, error: Exception, infer: Mapping[str, Any] | None) -> Response:
        """The answer of a request that failed; what isn't the client's fault is logged.

        Args:
            error: what was raised.
            infer: the request's JSON, where it is of the Open Inference Protocol.
        """
        if not isinstance(error, RequestError):
            frames = "".join(traceback.format_tb(error.__traceback__, -FRAMES))
            logger.error("a request failed: %s\n%s", printable(repr(error)), frames)
            error = InternalServerException("the server failed with this request; its log says why")
        return infer_error_response(error, infer.get("id"), self.served) if infer else error_response(error)

    def _is_explain(self) -> bool:
        """Never for a whole batch: TorchServe asks the first request, this handler each one."""
        return False

    def _is_describe(self) -> bool:
        """Never for a whole batch, as above: one answer to eight requests would fail all eight."""
        return False

    def _headers(self, index: int) -> dict[str, Any]:
        headers: dict[str, Any] = self.context.get_all_request_header(index)
        return headers

    def _read(
        self, row: dict[str, Any], index: int
    ) -> tuple[Payload | ExplanationRequest | Response, list[npt.NDArray[np.uint8]]]:
        """What a request asks for, or its answer where that is known, and its pictures for the network.

        Whatever is raised becomes the answer of this one request.
        """
        headers = self._headers(index)
        infer = None
        try:
            if headers.get("describe") == "True":
                return describe_response(self.describe_handle()), []
            if "about" in row:
                return about_response(row, self.served, self.runtime.name), []
            if wants_page(row, headers):
                return self.page.response, []
            finished = taken(headers)
            row = fields_of(row, headers, not header(headers, LENGTH_HEADER))
            explain = headers.get("explain") == "True"
            infer = None if explain else infer_body(row, headers)
            if infer:
                payload: Payload = parse_infer(
                    *infer, self.card.num_classes, self.max_instances, max_pixels=self.max_pixels
                )
            else:
                payload = parse(row, headers, self.card.num_classes, self.max_instances, explain)
            if payload.explanation:
                self.explainer.check(payload.explanation)
            later = may_defer(headers)
            views = unpacked(finished) if finished else self._views(payload, later)
            if isinstance(views, Response):
                return views, []
            if payload.explanation:
                heat = finished.get("heat") if finished else None
                return ExplanationRequest(payload.explanation, views, payload.instances, later, heat), []
            return payload, [view.array for view in views]
        except Exception as error:
            return self._failure(error, infer[0] if infer else None), []

    def _views(self, payload: Payload, later: bool) -> list[View] | Response:
        """The pictures of a request; or the answer that puts it off, if that may be."""
        waited = time.monotonic() - self._begin
        return self.reader.read(
            payload.pictures,
            self.explainer.side if payload.explanation else 0,
            self._begin + self.max_wait,
            *(payload.instances, later, PATIENCE_S - waited),
        )

    def _answer(self, index: int, response: Response) -> bytes:
        self.context.set_response_status(response.status, response.phrase, index)
        self.context.set_response_content_type(index, response.content_type)
        for name, value in response.headers.items():
            self.context.set_response_header(index, name, value)
        if not self._held and response.outcome != OUTCOME:  # scale.py's own, and what is no answer yet
            self.metrics.count_answer(response.status, response.outcome)
        return response.body

    def _warm_up(self) -> None:
        """Run the whole path on a blank picture, so that the first request is as fast as the tenth.

        Raises:
            CardError: the network's output isn't what the card says.
        """
        start = time.monotonic()
        buffer = io.BytesIO()
        Image.new("RGB", (self.card.resize, self.card.resize), "grey").save(buffer, "JPEG")
        for _ in range(WARM_UP_RUNS):
            views = self.reader.read([buffer.getvalue()], 0, math.inf)
            assert not isinstance(views, Response)
            logits = self.runtime.logits(views[0].array[None])
            if not np.isfinite(logits).all():
                raise CardError("the network answers a blank picture with infinite or undefined logits; retrain it")
            top_predictions(logits, self.labels, self.topk)
        logger.info("warmed up in %.1f s", time.monotonic() - start)


def _is_no_noise(record: logging.LogRecord) -> bool:
    """Whether a line is worth logging: the client is told what was wrong with its body, and must not fill the disk."""
    return not str(record.msg).startswith(NOISE)


def _limit(config: Mapping[str, Any], name: str) -> int:
    """A limit of the section ``limits:``, a positive number."""
    limits = config.get("limits")
    value = limits.get(name) if isinstance(limits, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CardError(f"model-config.yaml: limits must hold {name}, a positive number, is {value!r}")
    return value
