"""The network as OpenVINO compiled it, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from handler.card import CardError, ModelCard
from handler.runtimes import Runtime, usable_precision

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""Precision on the card to OpenVINO's hint; what is int8 in a quantised model stays int8."""


class OpenVinoRuntime(Runtime):
    """A model that ``build_archive.py`` converted; normalisation is in its graph."""

    name = "openvino"

    def __init__(self, card: ModelCard, model: Path) -> None:
        try:
            from openvino import Core, Tensor
        except ImportError as error:
            raise CardError(
                f"the archive was built for OpenVINO, which can't be imported here ({error}); "
                "install it, or build the archive with --runtime torch"
            ) from error
        if not model.is_file():
            raise CardError(f"the archive has no {model.name}, which its card asks for; build it anew")
        self.precision = usable_precision(card)
        compiled = Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
                "INFERENCE_NUM_THREADS": card.threads_per_worker,
                "NUM_STREAMS": 1,  # a worker serves one batch at a time
                # the workers share the cores; the kernel knows better than each of them where one is free
                "ENABLE_CPU_PINNING": False,
            },
        )
        wanted = [card.crop, card.crop, 3], card.num_classes
        found = (
            [d.get_length() for d in list(compiled.input(0).partial_shape)[1:]],
            compiled.output(0).partial_shape[1].get_length(),
        )
        if found != wanted:
            raise CardError(f"{model.name} takes and gives {found}, the card says {wanted}; build the archive anew")
        self._request, self._tensor = compiled.create_infer_request(), Tensor

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # set by hand: what infer() does with an array costs several times as much, and would copy it
        held = np.require(pixels, requirements="CW")  # until the answer is there: the request doesn't keep it alive
        self._request.set_input_tensor(self._tensor(held, shared_memory=True))
        self._request.infer()
        answers: npt.NDArray[np.float32] = self._request.get_output_tensor().data
        return answers.copy()  # the request owns the other, and writes the next answer into it
