"""The handler under arbitrary input (hypothesis): each answer is 2xx or 4xx in a proper form, and none raises."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.densenet_handler import DenseNetHandler
from tests import hostile
from tests.pictures import jpeg
from tests.unit.conftest import Request, serve

SETTINGS = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))

PICTURE = jpeg()
WORDS = ["data", "b64", "instances", "topk", "file", "body", "model_name", "inputs", "parameters", "describe"]
names = st.sampled_from(WORDS) | st.text(max_size=20)
texts = st.text(max_size=50) | st.just(base64.b64encode(PICTURE).decode()) | st.just("\ud800")
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)
contents = st.binary(max_size=200).map(bytearray) | st.just(bytearray(PICTURE))
headers = st.dictionaries(
    st.sampled_from(["accept", "Content-Type", "content-length", "x-densenet-hold", "explain"]) | st.text(max_size=10),
    st.sampled_from(["application/json", "multipart/form-data", "text/plain", "-1", "9" * 40]) | st.text(max_size=60),
    max_size=4,
)


ERROR = {"code", "type", "message"}
INFER_ERROR = {"error", "id", "model_name", "model_version", "outputs"}


def assert_proper(handler: DenseNetHandler, request: Request) -> None:
    """The answer is 2xx or 4xx, in the error form or the Open Inference Protocol's, and can be sent."""
    (answer,) = serve(handler, [request])
    assert 200 <= answer.status < 500
    answer.body.encode()
    if answer.status >= 400:
        assert set(json.loads(answer.body)) in (ERROR, ERROR | INFER_ERROR)
        assert len(answer.body) < 2000


@SETTINGS
@given(row=st.dictionaries(names, contents | values, max_size=4), sent=headers)
def test_any_fields_and_headers(tiny_handler: DenseNetHandler, row: dict[str, Any], sent: dict[str, str]) -> None:
    assert_proper(tiny_handler, Request(row, sent))


@SETTINGS
@given(body=values, sent=headers)
def test_any_json(tiny_handler: DenseNetHandler, body: Any, sent: dict[str, str]) -> None:
    assert_proper(tiny_handler, Request({"body": body}, {"content-type": "application/json", **sent}))


@SETTINGS
@given(seed=st.integers(0, 2**32), how=st.sampled_from([hostile.damaged, hostile.polyglot]))
def test_any_damage(tiny_handler: DenseNetHandler, seed: int, how: Any) -> None:
    assert_proper(tiny_handler, Request({"body": bytearray(how(random.Random(seed)))}, {}))


@SETTINGS
@given(data=st.binary(max_size=500), head=st.sampled_from([s[:12] for s in hostile.samples()]))
def test_any_bytes_behind_a_known_head(tiny_handler: DenseNetHandler, data: bytes, head: bytes) -> None:
    assert_proper(tiny_handler, Request({"body": bytearray(head + data)}, {}))
