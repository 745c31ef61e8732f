"""The Open Inference Protocol (KServe V2): a request's tensors → pictures, predictions → tensors.

A request is JSON, or JSON and behind it the contents of its tensor as bytes (the protocol's binary extension). It
holds one input tensor, either

- ``image``, BYTES, shape [N]: a picture file an element, in JSON as base64; or
- ``pixels``, UINT8, shape [N, height, width, 3]: RGB, 0 to 255, of any size,

and is answered with ``label`` (BYTES), ``index`` (INT32) and ``probability`` (FP32), each of shape [N, k], best first;
k is the request's parameter ``topk``, 1 without it.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from handler.body import header
from handler.errors import ImageTooLarge, InvalidParameter, InvalidRequest, RequestError, TooManyInstances, quoted
from handler.payload import URL_SAFE, Payload, text_of, topk_of
from handler.responses import JSON, Response, json_text
from handler.topk import Prediction

LENGTH_HEADER = "inference-header-content-length"
"""How many bytes of a body are JSON, where the contents of tensors follow."""
MAX_ID = 1000
"""Characters of a request's ``id``, which comes back in the answer."""
OUTPUTS = {"label": "BYTES", "index": "INT32", "probability": "FP32"}
ACCEPTED = (
    "accepted is one input: 'image', BYTES of shape [N], picture files (in JSON as base64), or 'pixels', UINT8 of "
    "shape [N, height, width, 3], RGB"
)


@dataclass(frozen=True)
class InferPayload(Payload):
    """What an inference request asks for.

    ``id``: the request's own, None without one. ``outputs``: names of tensors, ``binary`` those of them that are wanted
    as bytes.
    """

    id: str | None = None
    outputs: tuple[str, ...] = ()
    binary: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Model:
    """Name and version as the protocol tells them."""

    name: str
    version: str


def infer_body(row: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Mapping[str, Any], bytes] | None:
    """The JSON of an inference request, and the contents of tensors behind it; None if the request is another one.

    Args:
        row: of :func:`handler.body.fields_of`.
        headers: the request's.

    Raises:
        InvalidRequest: the header that tells the length of the JSON doesn't fit the body.
    """
    body = row.get("body")
    length = header(headers, LENGTH_HEADER)
    data, contents = body, b""
    if length and isinstance(body, (bytes, bytearray)):
        data, contents = _split_body(bytes(body), length)
    return (data, contents) if isinstance(data, dict) and (length or "inputs" in data) else None


def _split_body(body: bytes, length: str) -> tuple[Any, bytes]:
    if not length.isdecimal() or len(length) > 9 or int(length) > len(body):
        raise InvalidRequest(
            f"received Inference-Header-Content-Length: {quoted(length)}, expected how many of the body's {len(body)} "
            "bytes are JSON"
        )
    try:
        return json.loads(body[: int(length)]), body[int(length) :]
    except (ValueError, RecursionError):
        raise InvalidRequest(f"the first {length} bytes of the body aren't JSON; {ACCEPTED}") from None


def parse_infer(
    data: Mapping[str, Any], contents: bytes, num_classes: int, max_instances: int, max_pixels: int
) -> InferPayload:
    """An inference request; its pictures are files, also where pixels were sent.

    Args:
        data: its JSON.
        contents: of a tensor that has no ``data``.
        num_classes: the largest ``topk``.
        max_instances: pictures that one request may carry.
        max_pixels: width × height of ``pixels`` at most.

    Raises:
        InvalidRequest, InvalidParameter: it isn't what is ``ACCEPTED``.
        TooManyInstances, ImageTooLarge: more than the limits allow.
    """
    identity = data.get("id")
    if identity is not None and not _is_id(identity):
        raise InvalidRequest(
            f"received {quoted(identity)} as 'id', expected a string of at most {MAX_ID} printable characters"
        )
    parameters = _object(data.get("parameters"), "'parameters'")
    topk = topk_of(parameters["topk"], num_classes) if "topk" in parameters else None
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        count = len(inputs) if isinstance(inputs, list) else type(inputs).__name__
        raise InvalidRequest(f"received {count} as 'inputs', expected a list of one tensor; {ACCEPTED}")
    pictures = _pictures(inputs[0], contents, max_instances, max_pixels)
    outputs, binary = _outputs(data.get("outputs"), _flag(parameters, "binary_data_output", False))
    return InferPayload(pictures, topk, True, id=identity, outputs=outputs, binary=binary)


def infer_response(request: InferPayload, model: Model, pictures: Sequence[Sequence[Prediction]]) -> Response:
    """The answer to an inference request.

    Args:
        request: what was asked for.
        model: that answers.
        pictures: (N, k), for each picture its predictions, best first.
    """
    shape = [len(pictures), len(pictures[0])]
    values = [prediction for predictions in pictures for prediction in predictions]  # (N × k)
    tensors, blobs = [], []
    for name in request.outputs:
        column: list[Any] = [getattr(prediction, name) for prediction in values]
        tensor: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": shape}
        if name in request.binary:
            blobs.append(_to_bytes(column, OUTPUTS[name]))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = column
        tensors.append(tensor)
    head = {"model_name": model.name, "model_version": model.version, "outputs": tensors}
    text = json_text(head if request.id is None else {"id": request.id, **head})
    if not blobs:
        return Response(200, "OK", JSON, text)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Response(200, "OK", "application/octet-stream", text + b"".join(blobs), headers=headers)


def infer_error_response(error: RequestError, identity: object, model: Model) -> Response:
    """The answer to an inference request that can't be served: TorchServe's error form, and the protocol's ``error``.

    Over gRPC, TorchServe drops the status and reads ``id``, ``model_name``, ``model_version`` and ``outputs`` alone. So
    all four are there, and an output ``error`` says what is wrong.
    """
    outputs = [{"name": "error", "datatype": "BYTES", "shape": [1], "data": [str(error)]}]
    names = {"id": identity if _is_id(identity) else "", "model_name": model.name}
    rest = {"model_version": model.version, "outputs": outputs}
    body = {**error.to_dict(), "error": str(error), **names, **rest}
    return Response(error.status, error.phrase, JSON, json_text(body), error.type, error.headers)


def about_response(row: Mapping[str, Any], model: Model, platform: str) -> Response:
    """What the protocol tells about the model, from a worker that is ready: ``metadata``, or that it is ``ready``.

    TorchServe has no route for either: the query parameter ``about`` asks for it, to which the front door leads the
    protocol's paths.

    Args:
        row: of a request that has the parameter.
        model: that answers.
        platform: what computes.

    Raises:
        InvalidParameter: it is something else.
        InvalidRequest: there is a picture, or another parameter.
    """
    extra = sorted(name for name in row if name not in ("about", "model_name") and (name != "body" or row[name]))
    if extra:
        raise InvalidRequest(f"received 'about' together with {quoted(extra[0])}; send one or the other")
    text = text_of(row["about"])
    if text == "ready":
        return Response(200, "OK", JSON, json_text({"name": model.name, "ready": True}))
    if text != "metadata":
        raise InvalidParameter(f"received about={quoted(text)}; accepted are 'metadata' and 'ready'")
    data = {
        "name": model.name,
        "versions": [model.version],
        "platform": platform,
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1, -1]} for name, datatype in OUTPUTS.items()],
    }
    return Response(200, "OK", JSON, json_text(data))


def _pictures(tensor: Mapping[str, Any], contents: bytes, max_instances: int, max_pixels: int) -> list[bytes]:
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    files = datatype == "BYTES"  # under whatever name, as TorchServe's own samples send them
    if files and shape == [-1] and isinstance(tensor.get("data"), list):
        shape = [len(tensor["data"])]
    wanted = files or (datatype, tensor.get("name")) == ("UINT8", "pixels")
    if not wanted or not _is_shape(shape, 1 if files else 4):
        shown = f"{quoted(tensor.get('name'))}, {quoted(tensor.get('datatype'))} of shape {quoted(shape)}"
        raise InvalidRequest(f"received the input {shown}; {ACCEPTED}")
    count: int = shape[0]  # type: ignore[index]  # it is a list of numbers
    if count > max_instances:
        raise TooManyInstances(
            f"received {count} pictures; accepted are at most {max_instances} in one request; send several requests"
        )
    size = _object(tensor.get("parameters"), "the input's 'parameters'").get("binary_data_size")
    if size is not None and size != len(contents):
        raise InvalidRequest(
            f"received binary_data_size {quoted(size)} and {len(contents)} bytes behind the JSON; they must be the same"
        )
    if files:
        elements: Any = _split_elements(contents, count) if size is not None else tensor.get("data")
        if isinstance(elements, list) and len(elements) != count:  # before any is decoded
            raise InvalidRequest(
                f"received {len(elements)} elements in 'image', whose shape says {count} (TorchServe's gRPC drops "
                "raw_input_contents; send contents.bytes_contents)"
            )
        pictures: list[bytes] = elements if size is not None else _from_base64(elements)
        return pictures
    height, width, channels = shape[1:]  # type: ignore[index]
    if channels != 3:
        raise InvalidRequest(f"received pixels of {channels} channels, expected 3, RGB; {ACCEPTED}")
    if height * width > max_pixels:
        raise ImageTooLarge(f"received pixels of {width} × {height}; accepted are at most {max_pixels:,} pixels")
    flat = np.frombuffer(contents, np.uint8) if size is not None else _to_uint8(tensor.get("data"))
    if flat.size != count * height * width * 3:
        raise InvalidRequest(
            f"received {flat.size} values in 'pixels', whose shape {shape} says {count * height * width * 3}"
        )
    return [_to_file(array) for array in flat.reshape(shape)]  # (N, height, width, 3)


def _is_shape(shape: Any, dimensions: int) -> bool:
    """Whether it is a list of so many numbers from 1 to a million."""
    return (
        isinstance(shape, list)
        and len(shape) == dimensions
        and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 10**6 for n in shape)
    )


def _is_id(identity: object) -> bool:
    """Whether it may come back: it can be encoded, and its length is bounded."""
    return isinstance(identity, str) and len(identity) <= MAX_ID and identity.isprintable()


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"received {type(value).__name__} as {where}, expected an object")
    return value


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"received {type(value).__name__} as {name!r}, expected true or false")
    return value


def _from_base64(data: Any) -> list[bytes]:
    if not isinstance(data, list) or not all(isinstance(element, str) for element in data):
        raise InvalidRequest(f"received no list of strings as the data of 'image'; {ACCEPTED}")
    try:
        return [base64.b64decode(element.translate(URL_SAFE), validate=True) for element in data]
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"received data of 'image' that isn't base64 ({error}); encode the pictures") from None


def _split_elements(contents: bytes, count: int) -> list[bytes]:
    """The elements of a BYTES tensor, one more than ``count`` at most: each behind 4 bytes of length, little-endian."""
    elements: list[bytes] = []
    at = 0
    while at < len(contents) and len(elements) <= count:
        end = at + 4 + int.from_bytes(contents[at : at + 4], "little")
        if end > len(contents) or at + 4 > len(contents):
            raise InvalidRequest("received a BYTES tensor that is cut off; each element goes behind 4 bytes of length")
        elements.append(contents[at + 4 : end])
        at = end
    return elements


def _to_uint8(data: Any) -> np.ndarray:
    """Numbers of 0 to 255, flat or nested, as a flat array.

    NumPy is given no texts: it would make a table of them in which each is as wide as the longest.
    """
    try:
        for _ in range(3):  # (N, height, width, 3)
            if isinstance(data, list) and data and isinstance(data[0], list):
                if any(len(row) != len(data[0]) for row in data):
                    raise ValueError
                data = list(chain.from_iterable(data))
        if not isinstance(data, list) or not data:
            raise TypeError
        return np.frombuffer(bytes(data), np.uint8)
    except (TypeError, ValueError):
        raise InvalidRequest("received other data of 'pixels' than whole numbers from 0 to 255") from None


def _to_file(array: np.ndarray) -> bytes:
    """Pixels (height, width, 3) as a picture file, PPM: they themselves behind a few bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PPM")
    return buffer.getvalue()


def _outputs(outputs: Any, binary: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    if outputs is None:
        return tuple(OUTPUTS), frozenset(OUTPUTS if binary else ())
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise InvalidRequest("received 'outputs' that is no list of objects with a name")
    names = [output.get("name") for output in outputs]
    unknown = [name for name in names if not isinstance(name, str) or name not in OUTPUTS]
    if unknown or not names or len(set(names)) < len(names):
        raise InvalidRequest(f"received the outputs {quoted(names)}; accepted are {', '.join(OUTPUTS)}, each once")
    asked = {
        output["name"]
        for output in outputs
        if _flag(_object(output.get("parameters"), "an output's 'parameters'"), "binary_data", binary)
    }
    return tuple(names), frozenset(asked)


def _to_bytes(column: Sequence[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        elements = [text.encode() for text in column]
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return np.array(column, {"INT32": "<i4", "FP32": "<f4"}[datatype]).tobytes()
