"""Where the network looked: a picture and a class → a heat map, and the picture with it.

Grad-CAM (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", 2017) on the last
dense block, behind its norm and ReLU. What follows in a DenseNet is a mean and a linear layer, so
that the gradients of a class's logit are the layer's weights / (h · w), without a backward pass (a
test compares the map with captum's): one run of whatever runtime serves predictions is enough. In
front of the norm, its shift would be out of sight, and of a class that rests on it, the map empty.

Integrated gradients need the network in PyTorch and seconds of a processor: :mod:`handler.gradients`.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import safe_open

from handler.card import ModelCard
from handler.errors import InvalidParameter, ServerBusy
from handler.gradients import SECONDS, Gradients, integrated_gradients
from handler.later import Lane, wait
from handler.network import load_network
from handler.payload import GRAD_CAM, ExplanationOptions
from handler.preprocessing import Preprocessing, View
from handler.responses import JSON, PNG, Response, error_response, json_text, prefers
from handler.runtimes import Runtime
from handler.topk import Prediction, top_predictions

BRIGHTEST = 99
"""Percentile of integrated gradients that becomes 1: single pixels would leave all others dark."""
OVERLAY_SCALE = 2
"""Sides of the picture with the heat map, in sides of what the network sees."""
PALETTE = ((13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))
"""Colours of heat 0, ¼, ½, ¾ and 1 (matplotlib's plasma: even steps in brightness, safe for the colour-blind)."""
OPACITY = (0.25, 0.75)
"""How much of the picture the colour of heat 0 and of heat 1 covers."""

_COLOURS = np.stack(
    [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(PALETTE)), channel) for channel in zip(*PALETTE)], axis=1
).astype(np.uint8)  # (256, 3)


@dataclass(frozen=True)
class Explanation:
    """What speaks for one class in a picture.

    ``heat``: (h, w) float32, 0 to 1; 1 is the most, and all is 0 where nothing speaks for the class.
    ``prediction``: the class that is explained and its probability.
    """

    prediction: Prediction
    method: str
    heat: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ExplanationRequest:
    """A request that is ready to be explained: what was asked for, and its decoded pictures.

    ``later``: it may be put off. ``heat``: (crop, crop) integrated gradients, where that was done, and they are here.
    """

    options: ExplanationOptions
    views: list[View]
    instances: bool
    later: bool = False
    heat: npt.NDArray[np.float32] | None = None


class Explainer:
    """Explains pictures with the network of a worker.

    Args:
        card, labels, runtime, weights, device: the model's.
        gradients: whether integrated gradients may be asked for.
        lane: where they are computed, if not by the worker.
    """

    def __init__(
        self,
        card: ModelCard,
        labels: list[str],
        runtime: Runtime,
        weights: Path,
        device: torch.device,
        gradients: bool = True,
        lane: Lane | None = None,
    ) -> None:
        self._card, self._labels, self._runtime = card, labels, runtime
        self._weights, self._device = weights, device
        self._gradients, self._lane = gradients, lane
        self._preprocessing = Preprocessing.of(card)
        self.side = OVERLAY_SCALE * card.crop

    def check(self, options: ExplanationOptions) -> None:
        """Refuse a method that is switched off.

        Raises:
            InvalidParameter: it is.
        """
        if options.method != GRAD_CAM and not self._gradients:
            raise InvalidParameter(f"received method={options.method!r}, which is off at this server; send {GRAD_CAM}")

    def explain(
        self, view: View, options: ExplanationOptions, later: bool = False, heat: npt.NDArray[np.float32] | None = None
    ) -> Explanation | Response:
        """What speaks for a class in a picture, or the answer that puts the request off.

        Args:
            view: the picture.
            options: method and class.
            later: the request may be put off.
            heat: (crop, crop) integrated gradients, if they are known.

        Raises:
            ServerBusy: integrated gradients are computed for somebody else, or there is no memory for them.
        """
        logits, features = self._runtime.logits_and_features(view.array[None])  # (1, classes), (1, channels, h, w)
        target = int(logits[0].argmax()) if options.target is None else options.target
        (all_classes,) = top_predictions(logits, self._labels, len(self._labels), self._card.temperature)
        prediction = next(p for p in all_classes if p.index == target)
        if options.method == GRAD_CAM:
            return Explanation(prediction, options.method, self._grad_cam(features[0], target))
        if heat is None and self._device.type != "cpu":  # there it takes no seconds
            heat = integrated_gradients(self._network, self._preprocessing, view.array, target, self._device)
        if heat is None:
            task = Gradients(self._card, self._weights, view, target, time.monotonic() + SECONDS)
            task.start()
            if later and self._lane:
                return self._lane.defer(task)
            heat = wait(task)["heat"]
        return Explanation(prediction, options.method, _to_one(heat, float(np.percentile(heat, BRIGHTEST))))

    def respond(self, request: ExplanationRequest, accept: str) -> Response:
        """The answer to a request: JSON, or the picture with the heat map over it for who prefers ``image/png``."""
        explanations = []
        for view in request.views:
            try:
                explained = self.explain(view, request.options, request.later, request.heat)
            except ServerBusy as error:
                return error_response(error)
            if isinstance(explained, Response):
                return explained
            explanations.append(explained)
        if request.instances:
            answers = [self._to_dict(e, view) for e, view in zip(explanations, request.views)]
            return Response(200, "OK", JSON, json_text({"explanations": answers}))
        (explanation,), (view,) = explanations, request.views
        if prefers(accept, PNG):
            return Response(200, "OK", PNG, self.draw(explanation, view))
        return Response(200, "OK", JSON, json_text(self._to_dict(explanation, view)))

    def draw(self, explanation: Explanation, view: View) -> bytes:
        """A PNG of what the network saw, the heat map over it; its sides are OVERLAY_SCALE × crop px."""
        picture = Image.fromarray(view.enlarged)
        heat = Image.fromarray(
            (255 * enlarged(explanation.heat, picture.width)).round().astype(np.uint8)
        )  # (side, side)
        opacity = heat.point([round(255 * value) for value in np.linspace(*OPACITY, 256)])
        heat.putpalette(_COLOURS.tobytes())
        buffer = io.BytesIO()
        Image.composite(heat.convert("RGB"), picture, opacity).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _to_dict(self, explanation: Explanation, view: View) -> dict[str, object]:
        height, width = explanation.heat.shape
        return {
            **explanation.prediction.to_dict(),
            "method": explanation.method,
            "heat_map": [[round(value, 4) for value in row] for row in explanation.heat.tolist()],
            "width": width,
            "height": height,
            "region": [round(edge, 2) for edge in self._preprocessing.region(view.size)],
            "picture": list(view.size),
        }

    @cached_property
    def _class_weights(self) -> npt.NDArray[np.float32]:
        """(classes, channels), of the last layer."""
        with safe_open(self._weights, "numpy") as file:
            weights: npt.NDArray[np.float32] = file.get_tensor("classifier.weight").astype(np.float32)
            return weights

    def _grad_cam(self, features: npt.NDArray[np.float32], target: int) -> npt.NDArray[np.float32]:
        """(channels, h, w) → (h, w)."""
        heat: npt.NDArray[np.float32] = np.maximum(np.tensordot(self._class_weights[target], features, 1), 0)  # (h, w)
        return _to_one(heat, float(heat.max()))

    @cached_property
    def _network(self) -> torch.nn.Module:
        """For gradients where a GPU computes them; its precision is float32."""
        network: torch.nn.Module = load_network(self._card, self._weights, self._device)
        return network


def _to_one(heat: npt.NDArray[np.float32], highest: float) -> npt.NDArray[np.float32]:
    """The heat with ``highest``, and what is above, as 1."""
    if highest > 0:
        heat = np.minimum(heat / highest, 1)
    return heat.astype(np.float32)


def enlarged(heat: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """A heat map (h, w) as (side, side), interpolated."""
    image = Image.fromarray(heat).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)  # (side, side)
