"""The calls that TorchServe's own documentation and collections make, each with what this server answers.

REST, KServe V1 and V2, management, metrics and gRPC. Where a call is refused on purpose, its line says why.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from tests.support.hostile.grpc import Call, answer, channels, good
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running
from tests.support.servers.torchserve_jar import methods

PICTURE = CHELSEA.read_bytes()
TEXT = base64.b64encode(PICTURE).decode()
TIMEOUT_S = 120
INFERENCE, MANAGEMENT, METRICS = range(3)
"""The ports, counted from the server's."""
INSTANCES = {"instances": [{"data": TEXT}]}
TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT]}


@dataclass(frozen=True)
class Rest:
    """A call over HTTP, the status that it gets, and a word of its answer."""

    method: str
    path: str
    status: int
    word: str = ""
    port: int = INFERENCE
    send: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method}-{self.port}-{self.path}-{'-'.join(self.send)}"


def at_management(method: str, path: str, status: int, word: str = "") -> Rest:
    """A call of the management API."""
    return Rest(method, path, status, word, MANAGEMENT)


CALLS = (
    # the inference API
    Rest("GET", "/ping", 200, "Healthy"),
    Rest("OPTIONS", "/", 200, '"openapi"'),
    Rest("GET", "/api-description", 200, '"openapi"'),
    Rest("OPTIONS", "/predictions/densenet", 200, '"openapi"'),
    Rest("PUT", "/predictions/densenet", 200, "probability", send={"data": PICTURE}),
    Rest("POST", "/predictions/densenet", 200, "probability", send={"data": PICTURE}),
    Rest("POST", "/predictions/densenet", 200, "probability", send={"files": {"data": PICTURE}}),
    # TorchServe keeps one field of a name; a model that expects two pictures is another model
    Rest(
        "POST",
        "/predictions/densenet",
        400,
        "more than one field of the same name",
        send={"files": [("data", PICTURE)] * 2},
    ),
    Rest("PUT", "/predictions/densenet/1.0", 200, "probability", send={"data": PICTURE}),
    Rest("PUT", "/predictions/densenet/2.0", 404, "ModelVersionNotFoundException", send={"data": PICTURE}),
    Rest("PUT", "/predictions/resnet-18", 404, "ModelNotFoundException", send={"data": PICTURE}),
    Rest("PUT", "/explanations/densenet", 200, "heat_map", send={"data": PICTURE}),
    Rest("POST", "/invocations", 200, "probability", send={"data": PICTURE}),
    Rest("POST", "/models/densenet/invoke", 200, "probability", send={"data": PICTURE}),
    Rest("POST", "/densenet/predict", 200, "probability", send={"data": PICTURE}),
    # KServe V1 and V2
    Rest("POST", "/v1/models/densenet:predict", 200, "predictions", send={"json": INSTANCES}),
    Rest("POST", "/v1/models/densenet:explain", 200, "explanations", send={"json": INSTANCES}),
    Rest("POST", "/v2/models/densenet/infer", 200, "outputs", send={"json": {"id": "7", "inputs": [TENSOR]}}),
    # the protocol has no explanations: TorchServe's own route takes the forms of the others
    Rest("POST", "/v2/models/densenet/explain", 200, "explanations", send={"json": INSTANCES}),
    Rest("GET", "/v2", 200, "Torchserve"),
    Rest("GET", "/v2/health/live", 200, "true"),
    Rest("GET", "/v2/health/ready", 200, "true"),
    at_management("GET", "/v1/models/densenet", 200, '"ready"'),
    # management
    at_management("OPTIONS", "/", 200, '"openapi"'),
    at_management("GET", "/models", 200, "densenet.mar"),
    at_management("GET", "/models?limit=5&next_page_token=0", 200, "densenet.mar"),
    at_management("GET", "/models/densenet", 200, "READY"),
    at_management("GET", "/models/densenet/1.0", 200, "READY"),
    at_management("GET", "/models/densenet/all", 200, "READY"),
    at_management("GET", "/models/densenet?customized=true", 200, "customizedMetadata"),
    at_management("GET", "/models/noop", 404, "ModelNotFoundException"),
    at_management("PUT", "/models/densenet?min_worker=2&max_worker=2", 202, "Processing worker updates"),
    at_management("PUT", "/models/densenet?min_worker=2&max_worker=2&synchronous=true", 200, "Workers scaled to 2"),
    at_management("PUT", "/models/densenet/1.0?min_worker=2&max_worker=2&synchronous=true", 200, "Workers scaled to 2"),
    at_management("PUT", "/models/densenet/1.0/set-default", 200, "Default version successfully updated"),
    at_management("PUT", "/models/densenet/9.9/set-default", 404, "ModelVersionNotFoundException"),
    at_management("DELETE", "/models/noop", 404, "ModelNotFoundException"),
    at_management("DELETE", "/models/densenet/9.9", 404, "ModelVersionNotFoundException"),
    # archives come from the model store alone
    at_management("POST", "/models?url=https://torchserve.pytorch.org/mar_files/squeezenet1_1.mar", 404, "allowed URL"),
    at_management("POST", "/models?url=file:///tmp/squeezenet1_1.mar", 404, "allowed URL"),
    at_management("POST", "/models?url=squeezenet1_1.mar", 404, "ModelNotFoundException"),
    # workflows, which aren't served
    at_management("GET", "/workflows", 200, "workflows"),
    at_management("POST", "/workflows?url=my_workflow.war", 404),
    at_management("GET", "/workflows/my_workflow", 404),
    at_management("DELETE", "/workflows/my_workflow", 404),
    Rest("POST", "/wfpredict/my_workflow", 404, send={"data": PICTURE}),
    # metrics
    Rest("GET", "/metrics", 200, "ts_inference_requests_total", METRICS),
    Rest("GET", "/metrics?name[]=ts_inference_requests_total", 200, "ts_inference_requests_total", METRICS),
)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_call_over_http(server: Running, call: Rest) -> None:
    url = f"http://127.0.0.1:{server.port + call.port}{call.path}"
    got = requests.request(call.method, url, timeout=TIMEOUT_S, **call.send)
    assert got.status_code == call.status, got.text
    assert call.word in got.text


def test_a_model_is_registered_described_and_removed(server: Running) -> None:
    """An archive of the store under another name: what the documentation does with one from the Internet."""
    models = f"{server.management}/models"
    archive = {"url": "densenet.mar", "model_name": "again", "initial_workers": "0", "batch_size": "1"}
    added = requests.post(models, params=archive, timeout=TIMEOUT_S)
    try:
        assert added.status_code == 200, added.text
        described = requests.get(f"{models}/again", timeout=TIMEOUT_S)
        assert (described.status_code, described.json()[0]["workers"]) == (200, [])
        assert requests.post(models, params=archive, timeout=TIMEOUT_S).status_code == 409
    finally:
        assert requests.delete(f"{models}/again", timeout=TIMEOUT_S).status_code == 200
    assert requests.get(f"{models}/again", timeout=TIMEOUT_S).status_code == 404


@dataclass(frozen=True)
class Grpc:
    """A call over gRPC, the status that it gets, and a word of its answer or of what is said of it."""

    method: str
    status: str
    word: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method}-{'-'.join(map(str, self.fields.values()))}"[:60]


GRPC_CALLS = (
    Grpc("Ping", "OK", "Healthy"),
    Grpc("ListModels", "OK", "densenet.mar", {"limit": 10}),
    Grpc("DescribeModel", "OK", "READY", {"model_name": "densenet"}),
    Grpc("DescribeModel", "OK", "accuracy", {"model_name": "densenet", "customized": True}),
    Grpc("DescribeModel", "NOT_FOUND", "noop", {"model_name": "noop"}),
    Grpc("ScaleWorker", "OK", "Workers scaled to 2", {"model_name": "densenet", "min_worker": 2, "synchronous": True}),
    Grpc("SetDefault", "OK", "Default version", {"model_name": "densenet", "model_version": "1.0"}),
    Grpc("UnregisterModel", "NOT_FOUND", "noop", {"model_name": "noop"}),
    # archives come from the model store alone
    Grpc(
        "RegisterModel", "NOT_FOUND", "allowed URL", {"url": "https://torchserve.pytorch.org/mar_files/densenet161.mar"}
    ),
    Grpc("RegisterModel", "NOT_FOUND", "", {"url": "densenet161.mar"}),
    Grpc("ServerLive", "OK"),
    Grpc("ServerReady", "OK"),
    Grpc("ModelReady", "OK", "", {"name": "densenet"}),
    Grpc("ModelMetadata", "OK", "1.0", {"name": "densenet"}),
    Grpc("ServerMetadata", "UNIMPLEMENTED"),
)


@pytest.mark.parametrize("call", GRPC_CALLS, ids=str)
def test_call_over_grpc(server: Running, call: Grpc) -> None:
    method = methods()[call.method]
    with channels(server.port) as make:
        outcome = make(Call("grpc", method, (method.request(**call.fields).SerializeToString(),)))
    assert outcome.status == call.status, outcome
    assert call.word in outcome.details + b"".join(outcome.answers).decode("utf-8", "replace")


@pytest.mark.parametrize("method", ["Predictions", "ModelInfer", "StreamPredictions"])
def test_prediction_over_grpc(server: Running, method: str) -> None:
    expected = requests.put(server.predictions, data=PICTURE, timeout=TIMEOUT_S).json()
    one = good(PICTURE, method)
    with channels(server.port) as make:
        outcome = make(one)
        if method == "StreamPredictions" and outcome.status == "UNIMPLEMENTED":
            return  # that it isn't served is said; no worker dies of it
        assert (outcome.status, len(outcome.answers)) == ("OK", 1), outcome
    got = answer(one, outcome)
    if method == "ModelInfer":
        labels = next(output for output in got.outputs if output.name == "label")
        assert json.loads(labels.contents.bytes_contents[0]) == expected["label"]
    else:
        assert got == expected
