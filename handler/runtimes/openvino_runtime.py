"""The network as OpenVINO compiled it, on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from handler.card import CardError, ModelCard
from handler.runtimes import Runtime, converted_sha256, has_bfloat16, usable_precision


def import_openvino() -> ModuleType:
    """OpenVINO.

    Raises:
        CardError: it isn't installed.
    """
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise CardError(
            f"the archive was built for OpenVINO, which can't be imported here ({error}); "
            "install it, or build the archive with --runtime torch"
        ) from error


class OpenVinoRuntime(Runtime):
    """A model that ``build_archive.py`` converted; normalisation is in its graph."""

    name = "openvino"

    def __init__(self, card: ModelCard, model: Path) -> None:
        import torch

        openvino = import_openvino()
        if converted_sha256(model) != card.converted_sha256:
            raise CardError(f"{model.name} isn't the one that the card describes; build the archive anew")
        cpu = torch.device("cpu")
        self.precision = usable_precision(card, cpu)
        # what a quantised model holds in int8 stays int8 in both
        reduced = self.precision == "bfloat16" or (self.precision == "int8" and has_bfloat16(cpu))
        core = openvino.Core()
        graph = core.read_model(model)
        # the last feature maps; as a further output they cost less than can be measured
        graph.add_outputs([o.output(0) for o in graph.get_ordered_ops() if o.get_type_name() == "Relu"][-1:])
        compiled = core.compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32",
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
        self._request, self._tensor = compiled.create_infer_request(), openvino.Tensor

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # set by hand: what infer() does with an array costs several times as much, and would copy it
        pixels = np.require(pixels, requirements=["C", "W"])  # must live until the answer is there
        self._request.set_input_tensor(self._tensor(pixels, shared_memory=True))
        self._request.infer()
        return self._output(0)

    def logits_and_features(
        self, pixels: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return self.logits(pixels), self._output(1)

    def _output(self, number: int) -> npt.NDArray[np.float32]:
        answers: npt.NDArray[np.float32] = self._request.get_output_tensor(number).data
        return answers.copy()  # the request owns the other, and writes the next answer into it
