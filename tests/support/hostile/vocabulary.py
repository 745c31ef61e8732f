"""The words that the server knows, and requests made of them: right ones, in which something is then wrong.

``tests/unit/test_vocabulary.py`` collects the words from the handler, the description of the API, the front door and
TorchServe's jar, and fails when one is missing here. A new word goes into the group of its place, and, where a right
value reaches further, into one of ``_right``.
"""

from __future__ import annotations

import base64
import copy
import json
import random
from dataclasses import dataclass, field
from typing import Any

from handler.payload import METHODS
from tests.support.pictures.made import jpeg

KEYS = (
    *("data", "file", "body", "b64", "instances", "topk", "method", "target", "model_name", "about"),
    *("id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "contents", "raw_input_contents"),
    *("binary_data", "binary_data_output", "binary_data_size"),
)
"""Of JSON objects, fields of forms and of gRPC's map, and of query parameters."""
HEADERS = (
    *("Accept", "Content-Type", "Content-Length", "Expect", "Authorization", "Connection", "Host", "User-Agent"),
    *("Inference-Header-Content-Length", "X-Request-Start", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Proto"),
    *(
        "X-Densenet-Hold",
        "X-Densenet-Patience",
        "X-Densenet-Busy",
        "X-Densenet-Later",
        "X-Densenet-Slow",
        "X-Densenet-Query",
    ),
    *("X-Densenet-Worker-Died", "explain", "describe", "url_path", "ts_stream_next", "ts_request_sequence_id"),
)
TYPES = (
    *("application/json", "text/plain", "text/html", "image/png", "image/*", "application/octet-stream", "image/jpeg"),
    *("multipart/form-data", "application/x-www-form-urlencoded", "application/json; charset=utf-16"),
    *("text/plain; charset=utf-7", "APPLICATION/JSON", "application/*", "*/*", "text/*", "/", ""),
)
WORDS = (
    *METHODS,
    *("image", "pixels", "BYTES", "UINT8", "FP32", "INT32", "label", "index", "probability", "error"),
    *("metadata", "ready", "True", "False", "densenet", "1.0", "t=1700000000.000", "data:image/png;base64,"),
)
"""Values with a meaning."""
ROUTES = (
    *("/predictions/densenet", "/predictions/densenet/1.0", "/explanations/densenet", "/invocations"),
    *("/densenet/predict", "/densenet/1.0/predict", "/models/densenet/invoke", "/v1/models/densenet:predict"),
    *("/v1/models/densenet:explain", "/v2/models/densenet/infer", "/v2/models/densenet/explain"),
    *("/v2/models/densenet", "/v2", "/v2/health/ready", "/v2/health/live", "/ping", "/", "/api-description"),
    *("/prediction/densenet", "/wfpredict/densenet", "/metrics", "/models", "/models/densenet", "/models/densenet/1.0"),
    *("/models/densenet/1.0/set-default", "/predictions/densenet/1.0/true/default/body"),
)

DEPTHS = (2, 70, 900, 5000)
PICTURE = jpeg()


@dataclass
class Message:
    """A request before it has a form on the wire: parameters with name, content type and bytes, as forms have them.

    One parameter ``body`` is the body.
    """

    path: str
    parameters: list[tuple[str, str, bytes]]
    headers: list[tuple[str, str]] = field(default_factory=list)
    query: list[tuple[str, str]] = field(default_factory=list)


def value(choose: random.Random) -> Any:
    """A JSON value of any type, hostile or with a meaning."""
    number = choose.choice((0, -1, 1, 5, 2**31, 2**63, -(2**64), 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan")))
    text = choose.choice(
        (
            "",
            "\0",
            "\ud800",
            "x\udfff",
            "\u202e\u2028\x85",
            "\r\n[METRICS]",
            "é" * 500,
            "x" * 5000,
            "9" * 5000,
            "½",
            "٣",
        )
    )
    leaf = choose.choice((None, True, False, number, text, choose.choice(WORDS), choose.choice(KEYS)))
    kind = choose.randrange(8)
    if kind == 0:
        return [leaf] * choose.choice((0, 1, 2, 65, 3000))
    if kind == 1:
        return {choose.choice((*KEYS, text)): leaf for _ in range(choose.randrange(4))}
    if kind == 2:
        deep: Any = leaf
        as_list = choose.random() < 0.5
        for _ in range(choose.choice(DEPTHS)):
            deep = [deep] if as_list else {"data": deep}
        return deep
    return base64.b64encode(PICTURE).decode() if kind == 3 else leaf


def text(choose: random.Random, data: Any) -> bytes:
    """JSON on the wire, now and then in a wrong encoding, cut off, or too deep to be written."""
    try:
        written = json.dumps(data)
    except RecursionError:
        return b"[" * choose.choice(DEPTHS) + b"1"
    how = choose.randrange(20)
    if how == 0:
        return written.encode("utf-16")
    if how == 1:
        return b"\xff" + written.encode()
    if how == 2:
        return json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return written.encode()[: choose.randrange(len(written) + 1)] if how == 3 else written.encode()


def message(choose: random.Random) -> Message:
    """A request of the words above: a right one in which up to three things are changed."""
    made = choose.choice((_json, _json, _json, _form, _form, _body, _bytes))(choose)
    for _ in range(choose.randrange(3)):
        name = choose.choice(HEADERS)
        if name not in ("Content-Length", "Expect", "Connection", "Host"):  # those are tests.support.hostile.http's
            made.headers.append((name, _header(choose)))
    if choose.random() < 0.2:
        made.path = choose.choice(ROUTES)
    if choose.random() < 0.2:
        made.query.append((choose.choice(KEYS), str(choose.choice((_header(choose), choose.choice(WORDS))))))
    return made


def _header(choose: random.Random) -> str:
    """A header's value: what a line may hold."""
    return choose.choice(
        (
            *WORDS,
            *TYPES,
            "",
            "-1",
            "0",
            "9" * 40,
            "1e999",
            "\x7f",
            "é",
            "\xff" * 100,
            "x" * 3000,
            "٣".encode().decode("latin-1"),
        )
    )


def _right(choose: random.Random) -> tuple[str, Any]:
    """A route, and JSON that is served there."""
    picture = base64.b64encode(PICTURE).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [picture], "parameters": {}}
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": list(range(12))}
    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "index"}]
    infer = {
        **{"id": "7", "model_name": "densenet", "inputs": [choose.choice((tensor, pixels))]},
        **{"parameters": {"topk": 2, "binary_data_output": False}, "outputs": outputs},
    }
    how = {"method": METHODS[0], "target": 1}
    return choose.choice(
        (
            ("/predictions/densenet", {"data": picture, "topk": 2}),
            ("/invocations", {"instances": [{"data": picture}, {"b64": picture}], "topk": 1}),
            ("/v1/models/densenet:predict", {"instances": [{"b64": picture}]}),
            ("/v2/models/densenet/infer", infer),
            ("/predictions/densenet", infer),
            ("/explanations/densenet", {"data": picture, **how}),
            ("/v1/models/densenet:explain", {"instances": [{"b64": picture}], **how}),
        )
    )


def _changed(choose: random.Random, data: Any) -> Any:
    """JSON in which values are replaced, keys added, renamed or left out, somewhere."""
    data = copy.deepcopy(data)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(data)
    for _ in range(choose.randrange(4)):
        node, key = choose.choice(places)
        how = choose.randrange(6)
        if isinstance(node, dict) and how == 0:
            node[choose.choice(KEYS)] = value(choose)
        elif isinstance(node, dict) and how == 1 and key in node:
            node[choose.choice((*KEYS, "\ud800", ""))] = node.pop(key)
        elif isinstance(node, dict) and how == 2:
            node.pop(key, None)
        elif isinstance(node, dict) or key < len(node):
            node[key] = value(choose)
    return data


def _json(choose: random.Random) -> Message:
    path, right = _right(choose)
    data = _changed(choose, right) if choose.random() < 0.9 else value(choose)
    return Message(path, [("body", "application/json", text(choose, data))])


def _form(choose: random.Random) -> Message:
    path = choose.choice(("/predictions/densenet", "/explanations/densenet", "/densenet/predict"))
    fields = [("file", "image/jpeg", PICTURE)]
    for _ in range(choose.randrange(3)):
        kind = choose.choice(TYPES)
        content = text(choose, value(choose)) if "json" in kind else _bytes_of(choose)
        fields.append((choose.choice((*KEYS, *HEADERS)), kind, content))
    choose.shuffle(fields)
    return Message(path, fields)


def _body(choose: random.Random) -> Message:
    return Message(choose.choice(ROUTES), [("body", choose.choice(TYPES), _bytes_of(choose))])


def _bytes(choose: random.Random) -> Message:
    """The Open Inference Protocol's tensors as bytes behind the JSON."""
    contents = len(PICTURE).to_bytes(4, "little") + PICTURE
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(contents)}}
    head = text(choose, _changed(choose, {"inputs": [tensor], "parameters": {"binary_data_output": True}}))
    length = choose.choice((len(head),) * 3 + (len(head) + 1, 0, -1))
    headers = [("Inference-Header-Content-Length", str(length))]
    return Message("/v2/models/densenet/infer", [("body", "", head + contents)], headers)


def _bytes_of(choose: random.Random) -> bytes:
    return choose.choice(
        (
            *(PICTURE, PICTURE[: len(PICTURE) // 2], base64.b64encode(PICTURE), b"", b"\0", b"\xff\xfe", b"5", b"-1"),
            *(b"\xed\xa0\x80", b"9" * 5000, b"x" * 50_000, b"[" * 5000, *(word.encode() for word in WORDS)),
        )
    )
