"""What of a client's words comes back in a message: printable, bounded, and always to be encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from handler.densenet_handler import DenseNetHandler
from handler.errors import MAX_MESSAGE, RequestError, printable, quoted
from tests.support.servers.worker import Request, serve

SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}

anything = st.text() | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Co"]), max_size=3000)


def is_harmless(text: str) -> bool:
    """Whether it can be sent, logged and shown."""
    return text.isprintable() and len(text) <= MAX_MESSAGE and text.encode().decode() == text


@SETTINGS
@given(text=anything)
@example("x" * 5000)
@example("\ud800\0\n\x1b[2J\u202e\u2028")
def test_every_message_is_printable_and_bounded(text: str) -> None:
    for error in RequestError.__subclasses__():
        message = str(error(text))
        assert is_harmless(message)
        assert error(message).to_dict()["message"] == message  # a message within another is left as it is


def test_what_is_printable_is_left_as_it_is() -> None:
    assert printable("1 × 2 „ü“ 🐶") == "1 × 2 „ü“ 🐶"
    assert printable("a\nb\x7f\ud800") == r"a\nb\x7f\ud800"
    assert printable("x" * 1000) == "x" * 1000
    assert printable("x" * 1001) == "x" * 999 + "…"


def test_a_value_is_quoted_in_short() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert quoted(deep) == "[[[...]]]"
    assert quoted("5") == "'5'"
    assert quoted({"a": [1, 2]}) == "{'a': [1, 2]}"
    assert len(quoted("x" * 10**7)) == 100
    assert len(quoted([["x" * 1000] * 1000] * 1000)) < 5000


Position = Callable[[str], tuple[dict[str, Any], dict[str, str]]]
POSITIONS: dict[str, Position] = {
    "field": lambda word: ({word or "x": b""}, {}),
    "field-with-a-picture": lambda word: ({"file": b"", word or "x": b""}, {}),
    "topk": lambda word: ({"file": b"", "topk": word}, {}),
    "about": lambda word: ({"about": word}, {}),
    "beside-about": lambda word: ({"about": "ready", word or "x": b"1"}, {}),
    "beside-instances": lambda word: ({"body": {"instances": [], word: 1}}, {}),
    "text": lambda word: ({"body": word}, {}),
    "method": lambda word: ({"file": b"", "method": word}, {"explain": "True"}),
    "target": lambda word: ({"file": b"", "target": word}, {"explain": "True"}),
    "picture": lambda word: ({"body": word.encode("utf-8", "surrogatepass")}, {}),
    "id": lambda word: ({"body": {"id": word, "inputs": 0}}, {}),
    "tensor": lambda word: ({"body": {"inputs": [{"name": word, "datatype": word, "shape": [word]}]}}, {}),
    "output": lambda word: ({"body": {"inputs": [TENSOR], "outputs": [{"name": word}]}}, {}),
    "size": lambda word: ({"body": {"inputs": [{**TENSOR, "parameters": {"binary_data_size": word}}]}}, {}),
    "length": lambda word: ({"body": b"{}"}, {"inference-header-content-length": word or "x"}),
}


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS.keys())
@settings(SETTINGS, max_examples=40)
@given(word=anything)
@example("x" * 5000)
@example("\ud800")
@example("\0\r\n[METRICS]\x1b[2J\u2028")
def test_no_word_of_a_client_comes_back_as_it_is(tiny_handler: DenseNetHandler, position: Position, word: str) -> None:
    row, headers = position(word)
    (answer,) = serve(tiny_handler, [Request(row, headers)])
    assert answer.status == 400 and is_harmless(answer.json["message"])
