"""Predictions and errors → answers, in the form that the client asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handler import errors
from handler.responses import Response, describe_response, error_response, prediction_response, prefers
from handler.topk import Prediction

DOG, CAT = Prediction("Samoyed", 258, 0.87), Prediction("tabby", 281, 0.05)
BROOK = Prediction("Bächli 🐶", 3, 0.5)


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", True),
        ("TEXT/PLAIN", True),
        ("text/plain; charset=utf-8", True),
        ("text/plain;q=0.1", True),
        ("text/plain;q=0", False),
        ("text/*", False),
        ("text/html", False),
        ("text/html, application/xhtml+xml, */*;q=0.8", False),
        ("application/json", False),
        ("application/*", False),
        ("text/plain, application/json", False),
        ("application/json, text/plain", False),
        ("application/json, text/plain, */*", False),
        ("text/plain, */*", True),
        ("text/plain, */*;q=0.8", True),
        ("text/plain;q=0.5, */*", False),
        ("text/plain;q=0.5, */*;q=0.5", True),
        ("text/plain;q=0.9, application/json;q=0.8", True),
        ("text/plain;q=0.8, application/json;q=0.9", False),
        ("text/plain;q=0.8, application/*;q=0.9", False),
        ("text/plain ; q=0.9 , application/json ; q=0.8", True),
        ("text/plain;q=high", False),
        ("text/plain;q=", False),
        (",,;;,=", False),
    ],
)
def test_text_only_if_it_is_preferred(accept: str, text: bool) -> None:
    assert prefers(accept, "text/plain") is text


@pytest.mark.parametrize(
    "parts",
    [{"phrase": "Schön"}, {"content_type": "text/plän"}, {"headers": {"Ä": "1"}}, {"headers": {"A": "ä"}}],
)
def test_what_isnt_ascii_beside_the_body_is_found_before_it_is_sent(parts: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"status": 200, "phrase": "OK", "content_type": "text/plain", "body": "ä".encode()}
    assert Response(**whole).headers == {}
    with pytest.raises(UnicodeEncodeError):
        Response(**{**whole, **parts})


def test_best_label_as_json() -> None:
    assert prediction_response([[DOG]], "", with_top=False, instances=False) == Response(
        200, "OK", "application/json", b'{"label": "Samoyed", "index": 258, "probability": 0.87}\n'
    )


def test_best_label_as_text() -> None:
    assert prediction_response([[DOG]], "text/plain", with_top=False, instances=False) == Response(
        200, "OK", "text/plain; charset=utf-8", b"Samoyed\n"
    )


def test_topk_adds_the_list_and_keeps_the_best() -> None:
    response = prediction_response([[DOG, CAT]], "", with_top=True, instances=False)
    assert json.loads(response.body) == {**DOG.to_dict(), "top": [DOG.to_dict(), CAT.to_dict()]}
    assert prediction_response([[DOG, CAT]], "text/plain", True, False).body == b"Samoyed\ntabby\n"


def test_topk_of_one_is_a_list_of_one() -> None:
    assert json.loads(prediction_response([[DOG]], "", True, False).body)["top"] == [DOG.to_dict()]


def test_list_is_left_out_if_topk_was_not_asked_for() -> None:
    assert "top" not in json.loads(prediction_response([[DOG, CAT]], "", False, False).body)
    assert prediction_response([[DOG, CAT]], "text/plain", False, False).body == b"Samoyed\n"


def test_instances_are_answered_in_order() -> None:
    assert json.loads(prediction_response([[DOG], [CAT]], "", False, True).body) == {
        "predictions": [DOG.to_dict(), CAT.to_dict()]
    }
    assert json.loads(prediction_response([[DOG]], "", False, True).body) == {"predictions": [DOG.to_dict()]}
    assert json.loads(prediction_response([[DOG, CAT], [CAT, DOG]], "", True, True).body) == {
        "predictions": [
            {**DOG.to_dict(), "top": [DOG.to_dict(), CAT.to_dict()]},
            {**CAT.to_dict(), "top": [CAT.to_dict(), DOG.to_dict()]},
        ]
    }
    assert prediction_response([[DOG], [CAT]], "text/plain", False, True).body == b"Samoyed\ntabby\n"


def test_labels_are_sent_as_they_are_written() -> None:
    assert '"label": "Bächli 🐶"' in prediction_response([[BROOK]], "", False, False).body.decode()
    assert prediction_response([[BROOK]], "text/plain", False, False).body.decode() == "Bächli 🐶\n"


@pytest.mark.parametrize(
    ("error", "status", "phrase"),
    [
        (errors.InvalidRequest, 400, "Bad Request"),
        (errors.InvalidParameter, 400, "Bad Request"),
        (errors.InvalidImage, 400, "Bad Request"),
        (errors.ImageTooLarge, 413, "Payload Too Large"),
        (errors.TooManyInstances, 413, "Payload Too Large"),
    ],
)
def test_error_has_torchserves_form(error: type[errors.RequestError], status: int, phrase: str) -> None:
    body = f'{{"code": {status}, "type": "{error.__name__}", "message": "1 × 2 „ü“"}}\n'
    assert error_response(error("1 × 2 „ü“")) == Response(
        status, phrase, "application/json", body.encode(), outcome=error.__name__
    )


def test_card_is_answered_as_json() -> None:
    assert describe_response({"name": "x", "crop": 224}) == Response(
        200, "OK", "application/json", b'{"name": "x", "crop": 224}\n'
    )
