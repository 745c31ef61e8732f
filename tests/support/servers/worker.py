"""A tiny model and a handler that has loaded it as a worker does, for tests without a server."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

with warnings.catch_warnings():
    # ts/version.py leaves its file open as it is imported; whoever imports it first would be blamed
    warnings.filterwarnings("ignore", r"unclosed file .*version\.txt", ResourceWarning)
    import ts
    from ts.context import Context, RequestProcessor
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.protocol.otf_message_handler import create_predict_response
    from ts.service import Service

from handler.card import Architecture, ModelCard
from handler.densenet_handler import DenseNetHandler
from handler.network import build_network
from scripts.lib.model_folder import ModelFolder, write_model_folder
from scripts.lib.server import METRICS_CONFIG
from tests.support.servers.worker_protocol import Answer, answers_in

TINY = Architecture("compact", growth_rate=8, block_config=(2, 2), num_init_features=16)
LABELS = ["Samoyed", "tabby", "crane", "crane", "Bächli", "maillot", "ice cream"]  # two cranes, as in ImageNet
LIMITS = {
    **{"max_image_pixels": 1_000_000, "max_decode_seconds": 10, "max_wait_seconds": 20, "max_instances": 4},
    "integrated_gradients": True,
}


@dataclass(frozen=True)
class Request:
    """One request as TorchServe hands it over: fields and headers."""

    row: Mapping[str, Any]
    headers: Mapping[str, Any]


def tiny_card(**changes: Any) -> ModelCard:
    """The card of a network that runs in a millisecond."""
    values: dict[str, Any] = {
        "name": "densenet-tiny",
        "architecture": TINY,
        "num_classes": len(LABELS),
        "resize": 72,
        "crop": 64,
        "dataset": "none",
        "licence": "Apache-2.0",
        "accuracy": {"top1": 0.5},
    }
    return ModelCard(**{**values, **changes})


def tiny_state(card: ModelCard | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Fresh weights, with a last layer that is large enough for pictures to differ in their probabilities."""
    card = card or tiny_card()
    torch.manual_seed(seed)
    network = build_network(card.architecture, card.num_classes)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["classifier.weight"] *= 20
    return state


def write_tiny_model(path: Path, card: ModelCard | None = None, state: Mapping[str, Any] | None = None) -> ModelFolder:
    """A model folder as train.py writes it."""
    card = card or tiny_card()
    return write_model_folder(path, state or tiny_state(card), card, LABELS)


def torchserve_metrics(config: Path = METRICS_CONFIG) -> Any:
    """TorchServe's own metrics, set up as its worker does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)  # of TorchServe's
        cache = MetricsCacheYamlImpl(str(config))
    cache.initialize_cache()
    cache.model_name = "densenet"
    return cache


def make_context(folder: Path, config: Mapping[str, Any] | None, gpu: int | None = None) -> Any:
    """The context of a worker that serves the model in ``folder``."""
    manifest = {"model": {"serializedFile": "weights.safetensors", "modelVersion": "1.0"}}
    return Context("densenet", str(folder), manifest, 8, gpu, ts.__version__, True, torchserve_metrics(), config)


def config_of(model: ModelFolder, **changes: Any) -> dict[str, Any]:
    """The model-config.yaml of a model, parsed; ``changes`` are to its card."""
    return {"handler": {**model.card.to_dict(), **changes}, "limits": dict(LIMITS)}


def start(folder: Path, config: Mapping[str, Any] | None, gpu: int | None = None) -> DenseNetHandler:
    """A handler that has been initialised as a worker does it."""
    loaded = DenseNetHandler()
    loaded.initialize(make_context(folder, config, gpu))
    return loaded


def serve(loaded: DenseNetHandler, requests: Sequence[Request]) -> list[Answer]:
    """The answers of one batch as TorchServe encodes them, which is where an answer can still end a worker."""
    context = loaded.context
    context.request_ids = {index: f"id-{index}" for index in range(len(requests))}
    context.request_processor = [RequestProcessor(dict(request.headers)) for request in requests]
    context.metrics.request_ids = context.request_ids
    bodies = loaded.handle([dict(request.row) for request in requests], context)
    assert {type(body) for body in bodies} == {bytes}
    code, answers = answers_in(create_predict_response(bodies, context.request_ids, "", 200, context))
    assert (code, len(answers)) == (200, len(requests))
    return answers


def service_of(loaded: DenseNetHandler) -> Service:
    """TorchServe's service with a handler that is ready, for ``tests.unit.worker_protocol.predict``."""
    service = Service("densenet", "", None, loaded.handle, None, 8)
    service._context = loaded.context
    service.set_cl_socket(None)
    return service
