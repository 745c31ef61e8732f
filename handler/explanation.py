"""Where the network looked: a picture and a class → a heat map, and the picture with it.

Grad-CAM (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", 2017) on the last
dense block, behind its norm and ReLU. What follows in a DenseNet is a mean and a linear layer, so
that the gradients of a class's logit are the layer's weights / (h · w), without a backward pass (a
test compares the map with captum's): one run of whatever runtime serves predictions is enough. In
front of the norm, its shift would be out of sight, and of a class that rests on it, the map empty.

Integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017) need the
network in PyTorch, which is loaded when they are first asked for.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import safe_open

from handler.card import ModelCard
from handler.isolation import IsolatedReader
from handler.network import load_network
from handler.payload import GRAD_CAM, ExplanationOptions
from handler.preprocessing import Preprocessing, View
from handler.responses import JSON, PNG, Response, json_text, prefers
from handler.runtimes import Runtime
from handler.topk import Prediction, top_predictions

STEPS = 24
"""Points on the way from the mean colour to the picture at which integrated gradients are taken."""
STEPS_AT_ONCE = 4
"""Of them, how many are computed in one batch: more need more memory and are no faster on a CPU."""
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
    """A request that is ready to be explained: what was asked for, and its decoded pictures."""

    options: ExplanationOptions
    views: list[View]
    instances: bool


class Explainer:
    """Explains pictures with the network of a worker."""

    def __init__(
        self,
        card: ModelCard,
        labels: list[str],
        runtime: Runtime,
        weights: Path,
        device: torch.device,
        reader: IsolatedReader,
    ) -> None:
        self._card, self._labels, self._runtime = card, labels, runtime
        self._weights, self._device, self._reader = weights, device, reader
        self._preprocessing = Preprocessing.of(card)

    def read(self, data: bytes) -> View:
        """The picture in a file.

        Raises:
            InvalidImage, ImageTooLarge, ImageTooComplex: see :meth:`handler.isolation.IsolatedReader.read`.
        """
        return self._reader.view(data, OVERLAY_SCALE * self._card.crop)

    def explain(self, pixels: npt.NDArray[np.uint8], options: ExplanationOptions) -> Explanation:
        """What speaks for a class in a picture.

        Args:
            pixels: (crop, crop, 3), 0 to 255.
            options: method and class.
        """
        logits, features = self._runtime.logits_and_features(pixels[None])  # (1, classes), (1, channels, h, w)
        target = int(logits[0].argmax()) if options.target is None else options.target
        (all_classes,) = top_predictions(logits, self._labels, len(self._labels), self._card.temperature)
        prediction = next(p for p in all_classes if p.index == target)
        if options.method == GRAD_CAM:
            heat = self._grad_cam(features[0], target)
        else:
            heat = self._integrated_gradients(pixels, target)
        return Explanation(prediction, options.method, heat)

    def respond(self, request: ExplanationRequest, accept: str) -> Response:
        """The answer to a request: JSON, or the picture with the heat map over it for who prefers ``image/png``."""
        explanations = [self.explain(view.array, request.options) for view in request.views]
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
        """For gradients; its precision is float32."""
        network: torch.nn.Module = load_network(self._card, self._weights, self._device)
        return network

    def _integrated_gradients(self, pixels: npt.NDArray[np.uint8], target: int) -> npt.NDArray[np.float32]:
        """(crop, crop, 3) → (crop, crop)."""
        from captum.attr import IntegratedGradients  # when it is needed: with matplotlib it takes a second and 75 MB

        images = self._preprocessing.to_tensor(pixels[None]).to(self._device)  # (1, 3, crop, crop)
        attributions = IntegratedGradients(self._network).attribute(
            images, baselines=0.0, target=target, n_steps=STEPS, internal_batch_size=STEPS_AT_ONCE
        )  # (1, 3, crop, crop); 0 is the mean colour
        heat: npt.NDArray[np.float32] = attributions[0].sum(0).clamp(min=0).float().cpu().numpy()  # (crop, crop)
        return _to_one(heat, float(np.percentile(heat, BRIGHTEST)))


def _to_one(heat: npt.NDArray[np.float32], highest: float) -> npt.NDArray[np.float32]:
    """The heat with ``highest``, and what is above, as 1."""
    if highest > 0:
        heat = np.minimum(heat / highest, 1)
    return heat.astype(np.float32)


def enlarged(heat: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """A heat map (h, w) as (side, side), interpolated."""
    image = Image.fromarray(heat).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)  # (side, side)
