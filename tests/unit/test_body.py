"""Bodies as clients send them without being told: what they are shows in their content."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from handler.body import QUERY_HEADER, fields_of
from handler.errors import InvalidRequest
from tests.support.pictures.made import base64_of, jpeg

PICTURE = jpeg()
JSON = {"data": base64_of(PICTURE)}
TEXT = json.dumps(JSON)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(TEXT.encode(), "application/octet-stream", id="curl-d"),
        pytest.param(TEXT.encode(), "", id="no-type"),
        pytest.param(TEXT.encode(), "APPLICATION/JSON", id="capitals"),
        pytest.param(TEXT.encode(), "application/json; charset=utf-8", id="charset"),
        pytest.param(TEXT.encode(), "application/vnd.api+json", id="another-json"),
        pytest.param(TEXT, "text/plain;charset=UTF-8", id="fetch"),
        pytest.param(b"\n  " + TEXT.encode(), "", id="space"),
        pytest.param(b"\xef\xbb\xbf" + TEXT.encode(), "application/json", id="byte-order-mark"),
        pytest.param(TEXT.encode("utf-16"), "application/json", id="utf-16"),
        pytest.param(TEXT.encode("utf-16-be"), "", id="utf-16-without-a-mark"),
        pytest.param(bytearray(TEXT.encode()), "", id="bytearray"),
        pytest.param(b"data=" + base64_of(PICTURE).replace("+", "%2B").replace("=", "%3D").encode(), "", id="form"),
        pytest.param(JSON, "application/json", id="parsed"),
    ],
)
def test_a_body_is_what_it_holds(body: Any, kind: str) -> None:
    fields = fields_of({"body": body}, {"Content-Type": kind})
    assert fields.get("body", fields) == JSON


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "text/plain", ""])
def test_a_picture_stays_a_picture(kind: str) -> None:
    assert fields_of({"body": PICTURE}, {"content-type": kind}) == {"body": PICTURE}


def test_text_that_is_no_json_stays_text() -> None:
    assert fields_of({"body": JSON["data"]}, {"content-type": "text/plain"}) == {"body": JSON["data"]}
    assert fields_of({"body": TEXT}, {"content-type": "application/json"}) == {"body": TEXT}, "a string in JSON"


def test_a_large_body_of_nothing_is_looked_at_briefly() -> None:
    """It is the worker that looks, and others wait meanwhile."""
    body = bytes(32 * 2**20)
    start = time.process_time()
    for _ in range(10):
        assert fields_of({"body": body}, {})["body"] is body
    assert time.process_time() - start < 0.1


def test_what_stands_behind_json_or_in_a_multipart_field_isnt_parsed() -> None:
    assert fields_of({"body": TEXT.encode()}, {}, is_json=False) == {"body": TEXT.encode()}
    assert fields_of({"body": TEXT.encode()}, {"content-type": "multipart/form-data; boundary=x"})["body"] != JSON


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"data": ', "Expecting value"),
        (b"{" * 100_000, "Expecting property name"),
        (b"[" * 100_000, ""),  # of the recursion, in other words with each Python
        (TEXT.encode("utf-16")[:-1], "truncated data"),
        (b'{"topk": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", ""])
def test_json_that_cant_be_parsed_is_refused_with_the_reason(body: bytes, reason: str, kind: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^received a JSON body that can't be parsed \(.*{reason}.*\); send one"):
        fields_of({"body": body}, {"content-type": kind})


def test_a_picture_that_is_called_json_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a JSON body that can't be parsed"):
        fields_of({"body": PICTURE}, {"content-type": "application/json"})


def test_the_fields_of_a_query_count() -> None:
    row = {"body": PICTURE, "model_name": b"densenet"}
    assert fields_of(row, {QUERY_HEADER: "topk=5&empty="}) == {"body": PICTURE, "topk": "5", "empty": ""}
    assert row == {"body": PICTURE, "model_name": b"densenet"}


@pytest.mark.parametrize(
    ("body", "query", "message"),
    [
        (b"", "topk=1&topk=2", r"^received the field 'topk' in the query, and once more; send it once$"),
        (b"topk=3&file=a", "topk=1", r"^received the field 'topk' in the query, and once more; send it once$"),
        (b"file=a&file=b", "", r"^received the field 'file' in the form, and once more; send it once$"),
        (
            b"",
            "&".join(f"a{at}=1" for at in range(17)),
            r"^received more than 16 fields in the query; send one picture",
        ),
        (b"file=a" + b"&" * 17, "", r"^received more than 16 fields in the form; send one picture"),
    ],
)
def test_a_field_is_there_once(body: bytes, query: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        fields_of({"body": body}, {QUERY_HEADER: query})
