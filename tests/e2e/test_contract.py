"""Each row of the HTTP contract (docs/http.md), against the real server with the bundled model."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from scripts.lib.conversion import has_openvino
from scripts.lib.model_folder import read_model_folder
from scripts.lib.paths import BUNDLED
from scripts.lib.precision import Wanted, settle
from tests.support.pictures.golden import CHELSEA, GOLDEN, Golden
from tests.support.pictures.made import save
from tests.support.servers.running import Running

TIMEOUT_S = 60
PICTURE = CHELSEA.read_bytes()
ENCODED = base64.b64encode(PICTURE).decode()
LABELS = read_model_folder(BUNDLED).labels

Send = Callable[[Running], requests.Response]


def put(server: Running, body: bytes, **headers: str) -> requests.Response:
    """``curl -T picture``."""
    return requests.put(server.predictions, data=body, headers=headers, timeout=TIMEOUT_S)


def post_json(server: Running, data: Any, route: str = "/predictions/densenet") -> requests.Response:
    """A JSON body."""
    return requests.post(server.url + route, json=data, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def expected(server: Running) -> dict[str, Any]:
    """The answer to the picture as the body: what every other form must give, too."""
    answer = put(server, PICTURE)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    result: dict[str, Any] = answer.json()
    return result


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_golden_pictures_get_their_label(server: Running, golden: Golden) -> None:
    answer = put(server, golden.path.read_bytes()).json()
    assert answer["label"] in golden.labels, answer
    assert golden.low <= answer["probability"] <= golden.high
    assert LABELS[answer["index"]] == answer["label"]


UNTOLD = {"picture": PICTURE, "json": json.dumps({"data": ENCODED}).encode()}
"""Bodies that say what they are, whatever they are called."""

FORMS: dict[str, Send] = {
    "put-body": lambda s: put(s, PICTURE),
    "post-body": lambda s: requests.post(
        s.predictions, data=PICTURE, headers={"Content-Type": "image/png"}, timeout=TIMEOUT_S
    ),
    **{
        f"multipart-{name}": lambda s, name=name: requests.post(  # type: ignore[misc]
            s.predictions, files={name: ("chelsea.png", PICTURE)}, timeout=TIMEOUT_S
        )
        for name in ("file", "data", "body")
    },
    "json-data": lambda s: post_json(s, {"data": ENCODED}),
    **{
        f"{name}-as-{kind or 'nothing'}": lambda s, body=body, kind=kind: requests.post(  # type: ignore[misc]
            s.predictions, data=body, headers={"Content-Type": kind} if kind else {}, timeout=TIMEOUT_S
        )
        for name, body in UNTOLD.items()
        # curl -d, --data-binary and urllib; fetch; PowerShell
        for kind in ("", "application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "APPLICATION/JSON")
        if (name, kind) != ("picture", "APPLICATION/JSON")
    },
    "json-of-powershell": lambda s: requests.post(
        s.predictions,
        data=json.dumps({"data": ENCODED}).encode("utf-16"),
        headers={"Content-Type": "application/json"},
        timeout=TIMEOUT_S,
    ),
    "form": lambda s: requests.post(s.predictions, data={"data": ENCODED}, timeout=TIMEOUT_S),
    "version-route": lambda s: requests.put(f"{s.predictions}/1.0", data=PICTURE, timeout=TIMEOUT_S),
    "invocations": lambda s: requests.put(f"{s.url}/invocations", data=PICTURE, timeout=TIMEOUT_S),
    "model-predict": lambda s: requests.put(f"{s.url}/densenet/predict", data=PICTURE, timeout=TIMEOUT_S),
}


@pytest.mark.parametrize("send", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_request_gives_the_same_answer(server: Running, expected: dict[str, Any], send: Send) -> None:
    answer = send(server)
    assert answer.status_code == 200, answer.text
    assert answer.json() == expected
    assert set(expected) == {"label", "index", "probability"}


def test_plain_text_is_the_label_and_a_newline(server: Running, expected: dict[str, Any]) -> None:
    answer = put(server, PICTURE, Accept="text/plain")
    assert answer.text == f"{expected['label']}\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("route", ["/predictions/densenet", "/v1/models/densenet:predict"])
def test_instances_are_answered_in_order(server: Running, expected: dict[str, Any], route: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "green").save(buffer, "PNG")
    green = put(server, buffer.getvalue()).json()
    instances = [{"data": ENCODED}, {"b64": base64.b64encode(buffer.getvalue()).decode()}, {"b64": ENCODED}]
    answer = post_json(server, {"instances": instances}, route)
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert [p["label"] for p in predictions] == [expected["label"], green["label"], expected["label"]]
    assert predictions[0]["probability"] == pytest.approx(expected["probability"], abs=1e-4)


TOPK: dict[str, Send] = {
    "query": lambda s: requests.put(f"{s.predictions}?topk=5", data=PICTURE, timeout=TIMEOUT_S),
    "query-of-v1": lambda s: requests.post(
        f"{s.url}/v1/models/densenet:predict?topk=5", json={"data": ENCODED}, timeout=TIMEOUT_S
    ),
    "multipart": lambda s: requests.post(s.predictions, files={"file": PICTURE}, data={"topk": "5"}, timeout=TIMEOUT_S),
    "json": lambda s: post_json(s, {"data": ENCODED, "topk": 5}),
    "invocations": lambda s: requests.put(f"{s.url}/invocations?topk=5", data=PICTURE, timeout=TIMEOUT_S),
    "model-predict": lambda s: requests.put(f"{s.url}/densenet/predict?topk=5", data=PICTURE, timeout=TIMEOUT_S),
}


@pytest.mark.parametrize("send", TOPK.values(), ids=TOPK.keys())
def test_topk_adds_the_best_classes(server: Running, expected: dict[str, Any], send: Send) -> None:
    answer = send(server).json()
    top = answer.pop("top")
    assert answer == expected
    assert len(top) == 5
    assert top[0] == expected
    assert [t["probability"] for t in top] == sorted((t["probability"] for t in top), reverse=True)
    assert all(LABELS[t["index"]] == t["label"] for t in top)


def multipart_twice(server: Running) -> requests.Response:
    """Two small pictures under one field name."""
    small = save(Image.new("RGB", (8, 8)), "PNG")
    files = [("file", ("a.png", small)), ("file", ("b.png", small))]
    return requests.post(server.predictions, files=files, timeout=TIMEOUT_S)


WRONG: dict[str, tuple[Send, int, str, str]] = {
    "empty": (lambda s: put(s, b""), 400, "InvalidImage", "received an empty picture (0 bytes)"),
    "get": (
        lambda s: requests.get(s.predictions, timeout=TIMEOUT_S),
        *(400, "InvalidImage", "received an empty picture (0 bytes)"),
    ),
    "text": (lambda s: put(s, b"hello"), 400, "InvalidImage", "received 5 bytes that are no picture"),
    "truncated": (lambda s: put(s, PICTURE[:50_000]), 400, "InvalidImage", "broken or cut off"),
    "bomb": (lambda s: put(s, bomb()), 413, "ImageTooLarge", "accepted are at most 100,000,000 pixels"),
    "not-json": (
        lambda s: requests.post(
            s.predictions, data=b'{"data":', headers={"Content-Type": "application/json"}, timeout=TIMEOUT_S
        ),
        *(400, "InvalidRequest", "received a JSON body that can't be parsed"),
    ),
    "json-list": (lambda s: post_json(s, [1, 2]), 400, "InvalidRequest", "received JSON of type list"),
    "not-base64": (lambda s: post_json(s, {"data": "%%%"}), 400, "InvalidRequest", "isn't base64"),
    "unknown-field": (
        lambda s: post_json(s, {"data": ENCODED, "colour": "red"}),
        *(400, "InvalidRequest", "received the unknown field 'colour'"),
    ),
    "no-picture": (lambda s: post_json(s, {"topk": 3}), 400, "InvalidRequest", "received no picture"),
    "two-fields": (
        lambda s: requests.post(s.predictions, files={"file": PICTURE, "data": PICTURE}, timeout=TIMEOUT_S),
        *(400, "InvalidRequest", "received more than one picture (fields data, file)"),
    ),
    "one-field-twice": (multipart_twice, 400, "BadRequestException", "received more than one field of the same name"),
    "query-twice": (
        lambda s: requests.put(f"{s.predictions}?topk=3&topk=3", data=PICTURE, timeout=TIMEOUT_S),
        *(400, "InvalidRequest", "received the field 'topk' in the query, and once more"),
    ),
    "unknown-query": (
        lambda s: requests.put(f"{s.predictions}?top=3", data=PICTURE, timeout=TIMEOUT_S),
        *(400, "InvalidRequest", "received the unknown field 'top'"),
    ),
    "compressed": (
        lambda s: put(s, PICTURE, **{"Content-Encoding": "gzip"}),
        *(415, "UnsupportedContentEncoding", "received a compressed body (Content-Encoding)"),
    ),
    "oversized": (
        lambda s: put(s, bytes(34 * 2**20)),
        *(413, "RequestTooLarge", "accepted are bodies of at most 33554432 bytes"),
    ),
    "oversized-in-pieces": (
        lambda s: requests.put(s.predictions, data=iter([bytes(2**20)] * 34), timeout=TIMEOUT_S),
        *(413, "RequestTooLarge", "accepted are bodies of at most 33554432 bytes"),
    ),
    "topk-zero": (
        lambda s: post_json(s, {"data": ENCODED, "topk": 0}),
        *(400, "InvalidParameter", f"accepted are whole numbers from 1 to {len(LABELS)}"),
    ),
    "topk-too-large": (
        lambda s: requests.put(f"{s.url}/invocations?topk={len(LABELS) + 1}", data=PICTURE, timeout=TIMEOUT_S),
        *(400, "InvalidParameter", f"accepted are whole numbers from 1 to {len(LABELS)}"),
    ),
    "no-instances": (lambda s: post_json(s, {"instances": []}), 400, "InvalidRequest", "at least one picture"),
    "bad-instance": (
        lambda s: post_json(s, {"instances": [{"data": ENCODED}, {"data": "aGVsbG8="}]}),
        *(400, "InvalidImage", "instance 1: received 5 bytes that are no picture"),
    ),
    "too-many-instances": (
        lambda s: post_json(s, {"instances": [{"data": "aGVsbG8="}] * 65}),
        *(413, "TooManyInstances", "accepted are at most 64 in one request"),
    ),
    "explanation-of-no-class": (
        lambda s: post_json(s, {"data": ENCODED, "target": len(LABELS)}, "/explanations/densenet"),
        *(400, "InvalidParameter", f"accepted are whole numbers from 0 to {len(LABELS) - 1}"),
    ),
    "explanation-by-another-method": (
        lambda s: post_json(s, {"data": ENCODED, "method": "lime"}, "/explanations/densenet"),
        *(400, "InvalidParameter", "accepted are grad-cam and integrated-gradients"),
    ),
    "explanation-of-no-picture": (
        lambda s: requests.put(f"{s.url}/explanations/densenet", data=b"hello", timeout=TIMEOUT_S),
        *(400, "InvalidImage", "received 5 bytes that are no picture"),
    ),
    "unknown-model": (
        lambda s: requests.put(f"{s.url}/predictions/nope", data=PICTURE, timeout=TIMEOUT_S),
        *(404, "ModelNotFoundException", "Model not found: nope"),
    ),
}


def bomb() -> bytes:
    """A PNG of a few hundred kB that declares 40,000 × 40,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("send", "status", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said(server: Running, send: Send, status: int, kind: str, message: str) -> None:
    answer = send(server)
    assert answer.status_code == status, answer.text
    error = json.loads(answer.text)
    assert error["code"] == status
    assert error["type"] == kind
    assert message in error["message"]


def test_describe_returns_the_card(server: Running) -> None:
    answer = requests.get(f"{server.management}/models/densenet?customized=true", timeout=TIMEOUT_S).json()
    card, _ = settle(read_model_folder(BUNDLED), Wanted())
    assert answer[0]["customizedMetadata"] == card.to_dict()
    if has_openvino():
        assert (card.runtime, card.converted_sha256 != "") == ("openvino", True)
        assert card.precision == "bfloat16"


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:9/evil.mar", "HTTPS://example.com/evil.mar", "file:///{outside}", "s3://bucket/evil.mar"),
        *("{outside}", "../{name}/evil.mar", "folder/../../{name}/evil.mar", "linked/evil.mar"),
    ],
)
def test_archives_come_from_the_model_store_alone(server: Running, tmp_path: Path, url: str) -> None:
    """Addresses, paths out of the store, and a folder of it that is a link, are refused by TorchServe."""
    outside = tmp_path / "evil.mar"
    outside.write_bytes((server.model_store / "densenet.mar").read_bytes())
    linked = server.model_store / "linked"
    linked.symlink_to(tmp_path)
    try:
        wanted = {"url": url.format(outside=outside, name=tmp_path.name), "model_name": "evil"}
        answer = requests.post(f"{server.management}/models", params=wanted, timeout=TIMEOUT_S)
    finally:
        linked.unlink()
    assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException"), answer.text
    models = requests.get(f"{server.management}/models", timeout=TIMEOUT_S).json()["models"]
    assert models == [{"modelName": "densenet", "modelUrl": "densenet.mar"}]


def test_the_inference_port_manages_no_models(server: Running) -> None:
    for method, path in [
        ("GET", "/models"),
        ("POST", "/models?url=x.mar"),
        ("DELETE", "/models/densenet"),
        ("GET", "/metrics"),
    ]:
        assert requests.request(method, server.url + path, timeout=TIMEOUT_S).status_code in {404, 405}


def test_metrics_are_in_prometheus_format(server: Running) -> None:
    put(server, PICTURE)
    text = requests.get(f"http://127.0.0.1:{server.port + 2}/metrics", timeout=TIMEOUT_S).text
    assert 'ts_inference_requests_total{model_name="densenet"' in text
