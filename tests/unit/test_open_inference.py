"""The Open Inference Protocol in the handler: tensors in JSON and as bytes, and an answer to each that is wrong."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from handler.densenet_handler import DenseNetHandler
from handler.open_inference import ACCEPTED
from tests.support.pictures.made import base64_of, jpeg
from tests.support.servers.worker import LABELS, LIMITS, Request, serve
from tests.support.servers.worker_protocol import Answer

PICTURE = jpeg()
TEXT = base64_of(PICTURE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


def image(*elements: str, **more: Any) -> dict[str, Any]:
    """A tensor of picture files in base64."""
    return {"name": "image", "datatype": "BYTES", "shape": [len(elements)], "data": list(elements), **more}


def pixels(array: np.ndarray, **more: Any) -> dict[str, Any]:
    """A tensor of pixels."""
    return {"name": "pixels", "datatype": "UINT8", "shape": list(array.shape), "data": array.tolist(), **more}


def infer(handler: DenseNetHandler, *inputs: Any, contents: bytes = b"", **more: Any) -> Answer:
    """The answer to an inference request; ``contents`` follow its JSON as bytes."""
    data = {"inputs": list(inputs), **more}
    if not contents:
        (answer,) = serve(handler, [Request({"body": data}, {"content-type": "application/json"})])
        return answer
    head = json.dumps(data).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    (answer,) = serve(handler, [Request({"body": bytearray(head + contents)}, headers)])
    return answer


def plain(handler: DenseNetHandler, topk: int = 1) -> list[dict[str, Any]]:
    """What the same picture gets without the protocol."""
    (answer,) = serve(handler, [Request({"file": PICTURE, "topk": str(topk)}, {})])
    top: list[dict[str, Any]] = answer.json["top"]
    return top


def element(data: bytes) -> bytes:
    """An element of a BYTES tensor."""
    return len(data).to_bytes(4, "little") + data


def test_pictures_in_json(tiny_handler: DenseNetHandler) -> None:
    answer = infer(tiny_handler, image(TEXT, TEXT), id="7", parameters={"topk": 2})
    assert (answer.status, answer.content_type) == (200, "application/json")
    top = plain(tiny_handler, 2)
    probabilities = answer.json["outputs"][2].pop("data")
    assert probabilities == pytest.approx([p["probability"] for p in top] * 2, abs=1e-4)
    assert answer.json | {"outputs": None} == {
        **{"id": "7", "model_name": "densenet", "model_version": "1.0", "outputs": None}
    }
    labels, indices = answer.json["outputs"][:2]
    assert labels == {"name": "label", "datatype": "BYTES", "shape": [2, 2], "data": [p["label"] for p in top] * 2}
    assert indices == {"name": "index", "datatype": "INT32", "shape": [2, 2], "data": [p["index"] for p in top] * 2}


@pytest.mark.parametrize("ids", [{}, {"id": ""}])
def test_the_id_comes_back_as_it_was(tiny_handler: DenseNetHandler, ids: dict[str, Any]) -> None:
    answer = infer(tiny_handler, image(TEXT), **ids)
    assert {k: v for k, v in answer.json.items() if k == "id"} == ids


def test_pictures_as_bytes_and_answers_as_bytes(tiny_handler: DenseNetHandler) -> None:
    contents = element(PICTURE) * 2
    tensor = {**image("", ""), "parameters": {"binary_data_size": len(contents)}}
    answer = infer(tiny_handler, tensor, contents=contents, parameters={"binary_data_output": True, "topk": 2})
    length = int(serve_headers(tiny_handler)["Inference-Header-Content-Length"])
    assert answer.content_type == "application/octet-stream"
    body = answer.body
    assert isinstance(body, bytes)
    head = json.loads(body[:length])
    label, index, probability = (output["parameters"]["binary_data_size"] for output in head["outputs"])
    blobs = body[length:]
    top = plain(tiny_handler, 2)
    assert blobs[:label] == b"".join(element(p["label"].encode()) for p in top) * 2
    assert np.frombuffer(blobs[label : label + index], "<i4").tolist() == [p["index"] for p in top] * 2
    assert np.frombuffer(blobs[-probability:], "<f4") == pytest.approx([p["probability"] for p in top] * 2, abs=1e-4)
    assert len(blobs) == label + index + probability


def serve_headers(handler: DenseNetHandler) -> dict[str, str]:
    """The headers of the last answer."""
    headers: dict[str, str] = handler.context.get_response_headers(0)
    return headers


def test_outputs_are_those_that_were_asked_for(tiny_handler: DenseNetHandler) -> None:
    outputs = [{"name": "index", "parameters": {"binary_data": True}}, {"name": "label"}]
    answer = infer(tiny_handler, image(TEXT), outputs=outputs)
    assert isinstance(answer.body, bytes)
    head = json.loads(answer.body[:-4])
    assert [output["name"] for output in head["outputs"]] == ["index", "label"]
    assert head["outputs"][1]["data"][0] == LABELS[int.from_bytes(answer.body[-4:], "little")]


@pytest.mark.parametrize("form", ["nested", "flat", "bytes"])
def test_pixels_are_prepared_as_a_picture_is(tiny_handler: DenseNetHandler, form: str) -> None:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(PICTURE)) as opened:
        array = np.asarray(opened.convert("RGB"))[None]
    tensor, contents = pixels(array), b""
    if form == "flat":
        tensor["data"] = array.reshape(-1).tolist()
    elif form == "bytes":
        contents = array.tobytes()
        tensor = {**tensor, "parameters": {"binary_data_size": len(contents)}}
        del tensor["data"]
    answer = infer(tiny_handler, tensor, contents=contents)
    buffer = io.BytesIO()
    Image.fromarray(array[0]).save(buffer, "PNG")
    (same,) = serve(tiny_handler, [Request({"body": buffer.getvalue()}, {})])
    values = {output["name"]: output["data"][0] for output in answer.json["outputs"]}
    assert values["index"] == same.json["index"]
    assert values["probability"] == pytest.approx(same.json["probability"], abs=1e-4)


def test_json_without_a_content_type_is_understood(tiny_handler: DenseNetHandler) -> None:
    body = json.dumps({"inputs": [image(TEXT)]}).encode()
    (answer,) = serve(tiny_handler, [Request({"body": bytearray(body)}, {})])
    assert answer.json["model_name"] == "densenet"


NOT_THAT = "received the input {}; " + ACCEPTED
WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "no-inputs": ({"inputs": []}, 400, f"received 0 as 'inputs', expected a list of one tensor; {ACCEPTED}"),
    "two-inputs": (
        {"inputs": [image(TEXT), image(TEXT)]},
        *(400, f"received 2 as 'inputs', expected a list of one tensor; {ACCEPTED}"),
    ),
    "inputs-no-list": ({"inputs": 3}, 400, f"received int as 'inputs', expected a list of one tensor; {ACCEPTED}"),
    "name": (
        {"inputs": [{"name": "picture", "datatype": "UINT8", "shape": [1], "data": [1]}]},
        400,
        NOT_THAT.format("'picture', 'UINT8' of shape [1]"),
    ),
    "datatype": ({"inputs": [image(TEXT, datatype="FP32")]}, 400, NOT_THAT.format("'image', 'FP32' of shape [1]")),
    "shape": ({"inputs": [image(TEXT, shape=[1, 1])]}, 400, NOT_THAT.format("'image', 'BYTES' of shape [1, 1]")),
    "negative": ({"inputs": [image(TEXT, shape=[-2])]}, 400, NOT_THAT.format("'image', 'BYTES' of shape [-2]")),
    "bool": ({"inputs": [image(TEXT, shape=[True])]}, 400, NOT_THAT.format("'image', 'BYTES' of shape [True]")),
    "count": (
        {"inputs": [image(TEXT, shape=[2])]},
        *(400, "received 1 elements in 'image', whose shape says 2 (TorchServe's gRPC drops raw_input_contents; "),
    ),
    "no-base64": (
        {"inputs": [image("%%%")]},
        *(400, "received data of 'image' that isn't base64 (Only base64 data is allowed); encode the pictures"),
    ),
    "data": ({"inputs": [image(TEXT, data="x")]}, 400, "received no list of strings as the data of 'image'; "),
    "no-picture": ({"inputs": [image("AAAA")]}, 400, "instance 0: received 3 bytes that are no picture"),
    "too-many": (
        {"inputs": [image(*[TEXT] * 5)]},
        *(413, "received 5 pictures; accepted are at most 4 in one request; send several requests"),
    ),
    "channels": (
        {"inputs": [pixels(np.zeros((1, 2, 2, 4), int))]},
        *(400, f"received pixels of 4 channels, expected 3, RGB; {ACCEPTED}"),
    ),
    "one-channel": (
        {"inputs": [pixels(np.zeros((1, 2, 2, 1), int))]},
        *(400, f"received pixels of 1 channels, expected 3, RGB; {ACCEPTED}"),
    ),
    "range": (
        {"inputs": [pixels(np.full((1, 1, 1, 3), 256))]},
        *(400, "received other data of 'pixels' than whole numbers from 0 to 255"),
    ),
    "ragged": (
        {"inputs": [pixels(np.zeros((1, 1, 1, 3), int), data=[[1], [2, 3]])]},
        *(400, "received other data of 'pixels' than whole numbers from 0 to 255"),
    ),
    "size": (
        {"inputs": [pixels(np.zeros((1, 1, 1, 3), int), shape=[1, 2, 2, 3])]},
        *(400, "received 3 values in 'pixels', whose shape [1, 2, 2, 3] says 12"),
    ),
    "huge": (
        {"inputs": [pixels(np.zeros((1, 1, 1, 3), int), shape=[1, 100_000, 100_000, 3])]},
        *(413, f"received pixels of 100000 × 100000; accepted are at most {LIMITS['max_image_pixels']:,} pixels"),
    ),
    "outputs": (
        {"inputs": [image(TEXT)], "outputs": [{"name": "logits"}]},
        *(400, "received the outputs ['logits']; accepted are label, index, probability, each once"),
    ),
    "outputs-form": (
        {"inputs": [image(TEXT)], "outputs": "label"},
        *(400, "received 'outputs' that is no list of objects with a name"),
    ),
    "topk": (
        {"inputs": [image(TEXT)], "parameters": {"topk": 0}},
        400,
        "received topk=0; accepted are whole numbers",
    ),
    "parameters": ({"inputs": [image(TEXT)], "parameters": 3}, 400, "received int as 'parameters', expected an object"),
    "id": (
        {"inputs": [image(TEXT)], "id": 3},
        *(400, "received 3 as 'id', expected a string of at most 1000 printable characters"),
    ),
    "id-that-cannot-be-encoded": (
        {"inputs": [image(TEXT)], "id": "\ud800"},
        *(400, r"received '\ud800' as 'id', expected a string of at most 1000 printable characters"),
    ),
    "id-without-an-end": ({"inputs": [image(TEXT)], "id": "x" * 7_000_000}, 400, f"received '{'x' * 47}..."),
    "too-deep-to-be-written": (
        {"inputs": [image(TEXT)], "parameters": {"topk": DEEP}},
        *(400, "received topk=[[[...]]]; accepted are whole numbers"),
    ),
    "nested-shape": (
        {"inputs": [image(TEXT, shape=DEEP)]},
        400,
        "received the input 'image', 'BYTES' of shape [[[...]]]",
    ),
    "texts-as-pixels": (
        {"inputs": [pixels(np.zeros((1, 1, 1, 3), int), data=["a" * 100_000, *[""] * 1000])]},
        *(400, "received other data of 'pixels' than whole numbers from 0 to 255"),
    ),
    "elements-without-an-end": (
        {"inputs": [image(TEXT, data=[""] * 1_000_000)]},
        *(400, "received 1000000 elements in 'image', whose shape says 1 "),
    ),
    "binary-size": (
        {"inputs": [image(TEXT, parameters={"binary_data_size": 9})]},
        *(400, "received binary_data_size 9 and 0 bytes behind the JSON; they must be the same"),
    ),
    "binary-output": (
        {"inputs": [image(TEXT)], "outputs": [{"name": "label", "parameters": {"binary_data": {}}}]},
        *(400, "received dict as 'binary_data', expected true or false"),
    ),
    "binary-outputs": (
        {"inputs": [image(TEXT)], "parameters": {"binary_data_output": "yes"}},
        *(400, "received str as 'binary_data_output', expected true or false"),
    ),
}


def test_files_may_have_any_name_and_shape_minus_one(tiny_handler: DenseNetHandler) -> None:
    """The form of TorchServe's own sample."""
    body = {"id": "x", "inputs": [image(TEXT, TEXT, name="312a4eb0", shape=[-1])]}
    (answer,) = serve(tiny_handler, [Request({"body": body}, {"content-type": "application/json"})])
    assert (answer.status, answer.json["outputs"][0]["shape"]) == (200, [2, 1])


@pytest.mark.parametrize(("body", "status", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_in_both_forms(
    tiny_handler: DenseNetHandler, body: dict[str, Any], status: int, message: str
) -> None:
    answer, good = serve(
        tiny_handler,
        [
            Request({"body": body}, {"content-type": "application/json"}),
            Request({"body": {"inputs": [image(TEXT)]}}, {"content-type": "application/json"}),
        ],
    )
    assert (answer.status, answer.json["code"]) == (status, status)
    assert answer.json["message"].startswith(message)
    assert answer.json["error"] == answer.json["message"]
    # what TorchServe's gRPC reads of every answer
    assert answer.json["outputs"] == [
        {"name": "error", "datatype": "BYTES", "shape": [1], "data": [answer.json["message"]]}
    ]
    assert {type(answer.json[key]) for key in ("id", "model_name", "model_version")} == {str}
    assert good.status == 200


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"{}", "3", "received Inference-Header-Content-Length: '3', expected how many of the body's 2 bytes are JSON"),
        (b"{}", "-1", "received Inference-Header-Content-Length: '-1', expected how many"),
        (b"[1", "2", f"the first 2 bytes of the body aren't JSON; {ACCEPTED}"),
    ],
)
def test_a_wrong_length_of_the_json_is_refused(
    tiny_handler: DenseNetHandler, body: bytes, length: str, message: str
) -> None:
    headers = {"Inference-Header-Content-Length": length}
    (answer,) = serve(tiny_handler, [Request({"body": bytearray(body)}, headers)])
    assert answer.status == 400
    assert answer.json["message"].startswith(message)


@pytest.mark.parametrize("contents", [b"\1", b"\5\0\0\0abc", element(b"abc") + b"\0"])
def test_elements_that_are_cut_off_are_refused(tiny_handler: DenseNetHandler, contents: bytes) -> None:
    tensor = {**image(""), "parameters": {"binary_data_size": len(contents)}}
    answer = infer(tiny_handler, tensor, contents=contents)
    assert answer.status == 400
    assert answer.json["message"].startswith("received a BYTES tensor that is cut off")


@pytest.mark.parametrize(
    ("tensor", "contents"),
    [
        pytest.param(pixels(np.zeros((1, 1, 1, 3), int), data=["a" * 100_000, *[""] * 1000]), b"", id="texts"),
        pytest.param(image("", parameters={"binary_data_size": 4_000_000}), bytes(4_000_000), id="empty-elements"),
    ],
)
def test_a_wrong_tensor_costs_little_memory(tiny_handler: DenseNetHandler, tensor: Any, contents: bytes) -> None:
    """NumPy made 400 MB of the first, and a list of a million elements came of the second."""
    tracemalloc.start()
    try:
        answer = infer(tiny_handler, tensor, contents=contents)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status == 400
    assert peak < 5 * len(contents) + 5_000_000


def test_metadata_and_readiness(tiny_handler: DenseNetHandler) -> None:
    rows = [{"body": b"", "about": value} for value in (b"metadata", b"ready", b"weather")]
    rows.append({"body": PICTURE, "about": b"ready"})
    metadata, ready, wrong, both = serve(tiny_handler, [Request(row, {}) for row in rows])
    assert metadata.json == {
        "name": "densenet",
        "versions": ["1.0"],
        "platform": tiny_handler.runtime.name,
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "index", "datatype": "INT32", "shape": [-1, -1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1, -1]},
        ],
    }
    assert ready.json == {"name": "densenet", "ready": True}
    assert wrong.json["message"] == "received about='weather'; accepted are 'metadata' and 'ready'"
    assert both.json["message"] == "received 'about' together with 'body'; send one or the other"
