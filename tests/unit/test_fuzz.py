"""The handler under arbitrary input: each answer is 2xx or 4xx in a proper form, and none raises.

Answers are judged as TorchServe's own service and encoding hand them to the frontend. DENSENET_FUZZ_SEED repeats a run,
whose seed pytest prints at its end.
"""

from __future__ import annotations

import base64
import random
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from handler.densenet_handler import DenseNetHandler
from tests.support.hostile import http as hostile
from tests.support.hostile import vocabulary
from tests.support.hostile.seeds import fuzz_seed
from tests.support.pictures.made import jpeg
from tests.support.servers.worker import Request, serve, service_of
from tests.support.servers.worker_protocol import Answer, Sent, predict

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


def assert_proper(answer: Answer, sent: object) -> None:
    """The answer is 2xx or 4xx, in the error form or the Open Inference Protocol's."""
    assert 200 <= answer.status < 500, (answer, sent)
    if answer.status >= 400:
        assert set(answer.json) in (ERROR, ERROR | INFER_ERROR), (answer, sent)
        assert answer.json["message"].isprintable() and len(answer.body) < 4000, (answer, sent)


def ask(handler: DenseNetHandler, request: Request) -> None:
    """The request gets a proper answer."""
    (answer,) = serve(handler, [request])
    assert_proper(answer, request)


def test_any_request_of_the_servers_own_words(tiny_handler: DenseNetHandler) -> None:
    """As bytes, through all of TorchServe's code in a worker."""
    choose = random.Random(fuzz_seed())
    service = service_of(tiny_handler)
    statuses = set()
    for _ in range(MESSAGES):
        message = vocabulary.message(choose)
        query = [(name, "", text.encode("utf-8", "replace")) for name, text in message.query]
        explains = ":explain" in message.path or "explanations" in message.path
        headers = [*message.headers, ("explain", str(explains))] if "/predict" not in message.path else message.headers
        if len(message.parameters) > 1:
            headers = [("content-type", "multipart/form-data; boundary=b"), *headers]
        else:
            headers = [("content-type", message.parameters[0][1]), *headers]
        sent = Sent([*query, *message.parameters], headers)
        code, (answer,) = predict(service, [sent])
        assert code == 200, (sent, answer)
        assert_proper(answer, sent)
        statuses.add(answer.status)
    assert {200, 400} <= statuses


MESSAGES = 2000


@seed(fuzz_seed())
@SETTINGS
@given(row=st.dictionaries(names, contents | values, max_size=4), sent=headers)
def test_any_fields_and_headers(tiny_handler: DenseNetHandler, row: dict[str, Any], sent: dict[str, str]) -> None:
    ask(tiny_handler, Request(row, sent))


@seed(fuzz_seed())
@SETTINGS
@given(body=values, sent=headers)
def test_any_json(tiny_handler: DenseNetHandler, body: Any, sent: dict[str, str]) -> None:
    ask(tiny_handler, Request({"body": body}, {"content-type": "application/json", **sent}))


@seed(fuzz_seed())
@SETTINGS
@given(number=st.integers(0, 2**32), how=st.sampled_from([hostile.damaged, hostile.polyglot]))
def test_any_damage(tiny_handler: DenseNetHandler, number: int, how: Any) -> None:
    ask(tiny_handler, Request({"body": bytearray(how(random.Random(number)))}, {}))


@seed(fuzz_seed())
@SETTINGS
@given(data=st.binary(max_size=500), head=st.sampled_from([s[:12] for s in hostile.samples()]))
def test_any_bytes_behind_a_known_head(tiny_handler: DenseNetHandler, data: bytes, head: bytes) -> None:
    ask(tiny_handler, Request({"body": bytearray(head + data)}, {}))
