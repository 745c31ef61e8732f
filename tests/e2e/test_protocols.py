"""What docs/protocols.md says of each protocol, against the real server, with the protocols' own client."""

from __future__ import annotations

import base64
import contextlib
import time
from typing import Any

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from scripts.lib.management import Management
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running

PICTURE = CHELSEA.read_bytes()
SERVICE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"


@pytest.fixture(scope="module")
def expected(server: Running) -> dict[str, Any]:
    """The answer without a protocol."""
    answer: dict[str, Any] = requests.put(server.predictions, data=PICTURE, timeout=60).json()
    return answer


@pytest.fixture(scope="module")
def triton(server: Running) -> Any:
    """The official client over HTTP."""
    return tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")


def picture(content: bytes, binary: bool) -> Any:
    """A tensor of one picture file."""
    tensor = tritonclient.http.InferInput("image", [1], "BYTES")
    element = content if binary else base64.b64encode(content)
    return tensor.set_data_from_numpy(np.array([element], dtype=np.object_), binary_data=binary)


@pytest.mark.parametrize("outputs_binary", [True, False], ids=["binary-out", "json-out"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary-in", "json-in"])
def test_pictures_over_http(triton: Any, expected: dict[str, Any], binary: bool, outputs_binary: bool) -> None:
    wanted = [
        tritonclient.http.InferRequestedOutput(name, binary_data=outputs_binary)
        for name in ("label", "index", "probability")
    ]
    result = triton.infer(
        "densenet", [picture(PICTURE, binary)], outputs=wanted, request_id="7", parameters={"topk": 3}
    )
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("7", "densenet", "1.0")
    label, index, probability = (result.as_numpy(name) for name in ("label", "index", "probability"))
    assert label.shape == index.shape == probability.shape == (1, 3)
    best = label[0, 0].decode() if outputs_binary else label[0, 0]
    assert (best, index[0, 0]) == (expected["label"], expected["index"])
    assert probability[0, 0] == pytest.approx(expected["probability"], abs=1e-4)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_pixels_over_http(triton: Any, expected: dict[str, Any], binary: bool) -> None:
    with Image.open(CHELSEA) as opened:
        array = np.asarray(opened.convert("RGB"))[None]
    tensor = tritonclient.http.InferInput("pixels", list(array.shape), "UINT8")
    result = triton.infer("densenet", [tensor.set_data_from_numpy(array, binary_data=binary)])
    assert result.as_numpy("label")[0, 0].decode() == expected["label"]
    assert result.as_numpy("probability")[0, 0] == pytest.approx(expected["probability"], abs=1e-4)


def test_an_error_over_http_reaches_the_client(triton: Any) -> None:
    with pytest.raises(InferenceServerException, match="received 8 bytes that are no picture") as caught:
        triton.infer("densenet", [picture(b"nonsense", True)])
    assert caught.value.status() == "400"


def test_what_torchserve_answers_over_http(server: Running, triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.get_server_metadata()["name"] == "Torchserve"
    for path in ("/v2/models/densenet", "/v2/models/densenet/ready", "/v1/models/densenet"):
        assert requests.get(server.url + path, timeout=60).status_code == 404
    for path in ("/v2/models/densenet/versions/1.0", "/v2/models/densenet/versions/1.0/ready"):
        assert requests.get(server.url + path, timeout=60).status_code == 501
    with pytest.raises(InferenceServerException, match="Model versioning is not yet supported"):
        triton.infer("densenet", [picture(PICTURE, True)], model_version="1.0")
    assert requests.get(f"{server.management}/v1/models/densenet", timeout=60).json() == {
        "name": "densenet",
        "ready": True,
    }


def test_what_the_handler_adds(server: Running) -> None:
    about = {
        what: requests.get(f"{server.url}/densenet/predict", {"about": what}, timeout=60).json()
        for what in ("metadata", "ready")
    }
    assert about["ready"] == {"name": "densenet", "ready": True}
    assert (about["metadata"]["name"], about["metadata"]["versions"]) == ("densenet", ["1.0"])


def call(server: Running, method: str, request: Any, response: Any) -> Any:
    """A call of the protocol's service under TorchServe's name."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port + 3}") as channel:
        send = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return send(request, timeout=60)


def infer(server: Running, content: bytes, raw: bool = False) -> dict[str, Any]:
    """The outputs for one picture over gRPC."""
    request = service_pb2.ModelInferRequest(model_name="densenet", id="7")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    if raw:
        request.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
    else:
        tensor.contents.bytes_contents.append(content)
    answer = call(server, "ModelInfer", request, service_pb2.ModelInferResponse)
    assert (answer.id, answer.model_name, answer.model_version) == ("7", "densenet", "1.0")
    return {output.name: output.contents for output in answer.outputs}


def test_the_open_inference_protocol_over_grpc(server: Running, expected: dict[str, Any]) -> None:
    outputs = infer(server, PICTURE)
    assert list(outputs["label"].bytes_contents) == [f'"{expected["label"]}"'.encode()]
    assert list(outputs["index"].int_contents) == [expected["index"]]
    assert list(outputs["probability"].fp32_contents) == [pytest.approx(expected["probability"], abs=1e-4)]
    assert b"received 8 bytes that are no picture" in infer(server, b"nonsense")["error"].bytes_contents[0]
    assert b"drops raw_input_contents" in infer(server, PICTURE, raw=True)["error"].bytes_contents[0]
    ready = service_pb2.ModelReadyRequest(name="densenet")
    assert call(server, "ModelReady", ready, service_pb2.ModelReadyResponse).ready
    metadata = service_pb2.ModelMetadataRequest(name="densenet")
    assert list(call(server, "ModelMetadata", metadata, service_pb2.ModelMetadataResponse).versions) == ["1.0"]
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        call(server, "ServerMetadata", service_pb2.ServerMetadataRequest(), service_pb2.ServerMetadataResponse)


def test_the_official_grpc_client_asks_for_another_service(server: Running) -> None:
    """When this fails, the limits that docs/protocols.md tells are gone."""
    with (
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port + 3}") as client,
        pytest.raises(InferenceServerException, match=r"inference\.GRPCInferenceService/ServerReady"),
    ):
        client.is_server_ready()


INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"
METHODS = {
    **dict.fromkeys(("Ping", "Predictions", "StreamPredictions", "StreamPredictions2"), (3, INFERENCE)),
    **dict.fromkeys(
        ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"), (3, SERVICE)
    ),
    **dict.fromkeys(
        ("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel"),
        (4, MANAGEMENT),
    ),
}
"""Each method of TorchServe's protocol files, the port that it is at, and its service."""


def encoded(number: int, content: bytes) -> bytes:
    """A field of a protobuf message: a text, bytes, or a message."""
    length, prefix = len(content), b""
    while length > 127:
        prefix, length = prefix + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + prefix + bytes([length]) + content


def prediction(content: bytes, model: bytes = b"densenet") -> bytes:
    """A ``PredictionsRequest``."""
    return encoded(1, model) + encoded(3, encoded(1, b"data") + encoded(2, content))


def stream(server: Running, method: str, *messages: bytes) -> list[bytes]:
    """The answers to ``messages``, as bytes."""
    offset, service = METHODS[method]
    with grpc.insecure_channel(f"127.0.0.1:{server.port + offset}") as channel:
        send = channel.stream_stream(f"/{service}/{method}", request_serializer=bytes, response_deserializer=bytes)
        return list(send(iter(messages), timeout=60))


def worker_pids(server: Running) -> list[int]:
    """Its workers' process ids."""
    return [worker.pid for worker in Management(server.management).status().workers]


def test_a_stream_of_predictions_is_a_stream_of_one(server: Running) -> None:
    """Each killed a worker."""
    before = worker_pids(server)
    assert stream(server, "StreamPredictions", prediction(PICTURE)) == stream(
        server, "Predictions", prediction(PICTURE)
    )
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        stream(server, "StreamPredictions2", prediction(PICTURE))
    assert worker_pids(server) == before


@pytest.mark.parametrize("method", METHODS)
def test_no_grpc_message_ends_a_worker(server: Running, method: str) -> None:
    """Empty, wrong and half right ones, and clients that are gone before their answer."""
    before = worker_pids(server)
    # a name that every method knows would scale, or remove, the model of the other tests
    named = b"densenet" if METHODS[method][0] == 3 or method == "DescribeModel" else b"nothing"
    customized = encoded(1, named) + b"\x18\1"
    wrong = [b"", b"\xff", encoded(1, b""), encoded(1, named), encoded(1, named) * 2, customized]
    wrong += [
        prediction(b"nonsense", named),
        encoded(1, named) + encoded(2, b"9.9"),
        encoded(1, b"\xff"),
        encoded(5, b""),
    ]
    offset, service = METHODS[method]
    for message in [*wrong, prediction(PICTURE, named)]:
        with contextlib.suppress(grpc.RpcError):
            stream(server, method, message)
        with grpc.insecure_channel(f"127.0.0.1:{server.port + offset}") as channel:
            send = channel.stream_stream(f"/{service}/{method}", request_serializer=bytes, response_deserializer=bytes)
            abandoned = [send(iter([message]), timeout=60) for _ in range(5)]
            time.sleep(0.01)
            for one in abandoned:
                one.cancel()
    assert stream(server, "Predictions", prediction(PICTURE))
    assert worker_pids(server) == before
