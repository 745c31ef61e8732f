"""Request row → pictures and parameters: every form that is accepted, a message of its own for every other."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from handler.body import HOW_TO_SEND, fields_of, header
from handler.errors import InvalidParameter, InvalidRequest, RequestError, TooManyInstances
from handler.payload import ExplanationOptions, Payload, parse, topk_of
from tests.support.pictures.made import base64_of

PICTURE = b"\xff\xd8 any bytes: nothing is decoded here \0\x01"
TEXT = base64_of(PICTURE)
CLASSES = 1000
NO_LISTS: list[Any] = [[], {}, "text", 5, None, b"bytes"]
MAX_INSTANCES = 3
EXPECTED_INSTANCES = 'expected {"data": "<base64>"} or {"b64": "<base64>"}, nothing else'


def explained(row: dict[str, Any]) -> Payload:
    """The same by the route of explanations."""
    return parse(fields_of(row, {}), {}, CLASSES, MAX_INSTANCES, explain=True)


def parsed(row: dict[str, Any], **headers: str) -> Payload:
    """The payload of a row; headers with _ for -."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse(fields_of(row, sent), sent, CLASSES, MAX_INSTANCES)


def refused(row: dict[str, Any], **headers: str) -> RequestError:
    """The error that a row gets."""
    with pytest.raises(RequestError) as caught:
        parsed(row, **headers)
    return caught.value


def topk_message(shown: str) -> str:
    """What a wrong topk is answered with."""
    return f"received topk={shown}; accepted are whole numbers from 1 to 1000, the number of classes"


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("field", ["body", "file", "data"])
def test_bytes_in_any_field_are_the_picture(field: str, kind: type) -> None:
    payload = parsed({field: kind(PICTURE)})
    assert payload == Payload([PICTURE], topk=None, instances=False)
    assert type(payload.pictures[0]) is bytes


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TEXT, id="base64"),
        pytest.param("data:image/jpeg;base64," + TEXT, id="data-url"),
        pytest.param("data:;base64," + TEXT, id="data-url-without-type"),
        pytest.param(TEXT[:20] + "\n" + TEXT[20:30] + "\r\n  " + TEXT[30:] + "\n", id="broken-into-lines"),
    ],
)
@pytest.mark.parametrize("where", ["json-data", "json-file", "json-body", "field-file", "text-body", "instance"])
def test_text_is_base64_with_or_without_a_data_url(text: str, where: str) -> None:
    rows: dict[str, dict[str, Any]] = {
        "json-data": {"body": {"data": text}},
        "json-file": {"body": {"file": text}},
        "json-body": {"body": {"body": text}},
        "field-file": {"file": text},
        "text-body": {"body": text},
        "instance": {"body": {"instances": [{"data": text}]}},
    }
    assert parsed(rows[where]).pictures == [PICTURE]


def test_instances_come_in_order_as_data_or_b64() -> None:
    instances = [{"data": TEXT}, {"b64": base64_of(b"two")}, {"b64": "data:image/png;base64," + base64_of(b"three")}]
    assert parsed({"body": {"instances": instances}}) == Payload([PICTURE, b"two", b"three"], instances=True)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"body": {"data": TEXT, "topk": 5}}, id="json-number"),
        pytest.param({"body": {"data": TEXT, "topk": "5"}}, id="json-text"),
        pytest.param({"body": {"instances": [{"data": TEXT}], "topk": 5}}, id="instances"),
        pytest.param({"file": PICTURE, "topk": "5"}, id="multipart-text"),
        pytest.param({"file": PICTURE, "topk": b"5"}, id="multipart-bytes"),
        pytest.param({"file": PICTURE, "topk": bytearray(b" 5\n")}, id="multipart-with-blanks"),
        pytest.param({"body": PICTURE, "topk": "5"}, id="query-parameter-beside-body"),
        pytest.param({"body": PICTURE, "topk": b"5", "model_name": b"densenet"}, id="invocations"),
        pytest.param({"body": b"", "topk": b"5", "data": PICTURE}, id="query-parameters-and-an-empty-body"),
        pytest.param({"body": {"data": TEXT, "topk": 5}, "topk": "7"}, id="json-wins-over-query"),
    ],
)
def test_topk_in_every_form(row: dict[str, Any]) -> None:
    assert parsed(row).topk == 5
    assert parsed(row).pictures == [PICTURE]


@pytest.mark.parametrize(("value", "topk"), [(1, 1), ("1", 1), (1000, 1000), ("1000", 1000), ("007", 7)])
def test_topk_at_the_edge(value: Any, topk: int) -> None:
    assert parsed({"file": PICTURE, "topk": value}).topk == topk


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        ("0", "'0'"),
        (-1, "-1"),
        ("-1", "'-1'"),
        (1001, "1001"),
        (b"1001", "'1001'"),
        (1.5, "1.5"),
        (5.0, "5.0"),
        ("1.5", "'1.5'"),
        (True, "True"),
        (None, "None"),
        ("abc", "'abc'"),
        ("", "''"),
        ("²", "'²'"),
        (b"\xff\xfe", "'��'"),
        ([5], "[5]"),
        (10**30, f"{10**30}"),
        ("9" * 5000, f"'{'9' * 47}...{'9' * 48}'"),
    ],
    ids=repr,
)
def test_topk_that_is_no_number_of_classes_is_refused(value: Any, shown: str) -> None:
    error = refused({"file": PICTURE, "topk": value})
    assert (type(error), error.status, str(error)) == (InvalidParameter, 400, topk_message(shown))


def test_topk_beyond_this_models_classes_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"^received topk='8'; accepted are whole numbers from 1 to 7,"):
        parse({"file": PICTURE, "topk": "8"}, {}, 7, MAX_INSTANCES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({}, f"received no picture; {HOW_TO_SEND}", id="nothing"),
        pytest.param({"model_name": b"densenet"}, f"received no picture; {HOW_TO_SEND}", id="model-name-only"),
        pytest.param({"topk": "5"}, f"received no picture; {HOW_TO_SEND}", id="topk-only"),
        pytest.param({"body": b"", "topk": "5"}, f"received no picture; {HOW_TO_SEND}", id="topk-and-empty-body"),
        pytest.param({"body": {}}, f"received no picture; {HOW_TO_SEND}", id="empty-object"),
        pytest.param(
            {"file": PICTURE, "data": PICTURE},
            f"received more than one picture (fields data, file); {HOW_TO_SEND}",
            id="two-fields",
        ),
        pytest.param(
            {"body": {"data": TEXT, "body": TEXT, "file": TEXT}},
            f"received more than one picture (fields body, data, file); {HOW_TO_SEND}",
            id="three-keys",
        ),
        pytest.param(
            {"image": PICTURE},
            "received the unknown field 'image'; accepted are file, data, body (one of them), topk, and instances; "
            + HOW_TO_SEND,
            id="unknown-field",
        ),
        pytest.param(
            {"body": {"data": TEXT, "top_k": 5}},
            "received the unknown field 'top_k'; accepted are file, data, body (one of them), topk, and instances; "
            + HOW_TO_SEND,
            id="unknown-key",
        ),
        pytest.param(
            {"x" * 5000: PICTURE},
            f"received the unknown field '{'x' * 47}...{'x' * 48}'; accepted are file, data, body (one of them), topk, "
            f"and instances; {HOW_TO_SEND}",
            id="endless-field-name",
        ),
        pytest.param(
            {"body": [TEXT]}, f"received JSON of type list, expected an object; {HOW_TO_SEND}", id="json-list"
        ),
        pytest.param({"body": 5}, f"received JSON of type int, expected an object; {HOW_TO_SEND}", id="json-number"),
        pytest.param(
            {"body": 1.5}, f"received JSON of type float, expected an object; {HOW_TO_SEND}", id="json-fraction"
        ),
        pytest.param({"body": True}, f"received JSON of type bool, expected an object; {HOW_TO_SEND}", id="json-true"),
        pytest.param(
            {"body": None}, f"received JSON of type NoneType, expected an object; {HOW_TO_SEND}", id="json-null"
        ),
        pytest.param(
            {"body": {"data": [1, 2]}},
            "received list as 'data', expected a picture as a base64 string",
            id="list-for-picture",
        ),
        pytest.param(
            {"body": {"body": None}},
            "received NoneType as 'body', expected a picture as a base64 string",
            id="null-for-picture",
        ),
        pytest.param(
            {"file": {"data": TEXT}},
            f"received dict in the field 'file', expected a picture; {HOW_TO_SEND}",
            id="json-inside-a-multipart-field",
        ),
        pytest.param(
            {"body": {"data": "no base64!"}},
            "received text in the field 'data' that isn't base64 (Only base64 data is allowed); "
            "encode the picture's bytes as base64",
            id="no-base64",
        ),
        pytest.param(
            {"body": {"data": TEXT[:-1]}},
            "received text in the field 'data' that isn't base64 (Incorrect padding); "
            "encode the picture's bytes as base64",
            id="base64-cut-off",
        ),
        pytest.param(
            {"body": "Bächli"},
            "received text in the field 'body' that isn't base64 "
            "(string argument should contain only ASCII characters); encode the picture's bytes as base64",
            id="text-that-is-no-ascii",
        ),
    ],
)
def test_request_of_the_wrong_form_is_refused(row: dict[str, Any], message: str) -> None:
    error = refused(row)
    assert (type(error), error.status, str(error)) == (InvalidRequest, 400, message)


def test_picture_under_any_other_content_type_is_a_picture() -> None:
    for content_type in ("image/jpeg", "application/x-www-form-urlencoded", "application/octet-stream", ""):
        assert parsed({"body": PICTURE}, content_type=content_type).pictures == [PICTURE]


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        *(
            pytest.param(
                wrong,
                'received \'instances\' that is no list with at least one picture; expected [{"data": "<base64>"}, …]',
                id=f"no-list-{type(wrong).__name__}",
            )
            for wrong in NO_LISTS
        ),
        pytest.param([{"data": TEXT}, TEXT], f"instance 1 is wrong; {EXPECTED_INSTANCES}", id="text"),
        pytest.param([{}], f"instance 0 is wrong; {EXPECTED_INSTANCES}", id="empty"),
        pytest.param([None], f"instance 0 is wrong; {EXPECTED_INSTANCES}", id="null"),
        pytest.param([{"data": TEXT, "b64": TEXT}], f"instance 0 is wrong; {EXPECTED_INSTANCES}", id="two-pictures"),
        pytest.param([{"data": TEXT, "topk": 5}], f"instance 0 is wrong; {EXPECTED_INSTANCES}", id="extra-key"),
        pytest.param([{"file": TEXT}], f"instance 0 is wrong; {EXPECTED_INSTANCES}", id="wrong-key"),
        pytest.param([{"data": [1]}], "instance 0: received list, expected a base64 string", id="list"),
        pytest.param(
            [{"data": TEXT}, {"b64": "no base64!"}],
            "received text in instance 1, 'b64' that isn't base64 (Only base64 data is allowed); "
            "encode the picture's bytes as base64",
            id="no-base64",
        ),
    ],
)
def test_instances_of_the_wrong_form_are_refused(instances: Any, message: str) -> None:
    error = refused({"body": {"instances": instances}})
    assert (type(error), error.status, str(error)) == (InvalidRequest, 400, message)


def test_the_target_of_instances_counts_where_it_is_explained() -> None:
    """The form of TorchServe's own documentation."""
    body = {"instances": [{"data": TEXT, "target": 3}, {"target": "3", "b64": TEXT}]}
    assert parsed({"body": body}) == Payload([PICTURE] * 2, instances=True)
    payload = explained({"body": body})
    assert (payload.pictures, payload.explanation) == ([PICTURE] * 2, ExplanationOptions(target=3))
    assert explained({"body": {"instances": [{"data": TEXT}], "target": 4}}).explanation == ExplanationOptions(target=4)
    with pytest.raises(InvalidParameter, match="instances with different targets; send a request for each target"):
        explained({"body": {"instances": [{"data": TEXT, "target": 3}, {"data": TEXT}]}})
    with pytest.raises(InvalidParameter, match=f"received target={CLASSES}; accepted are whole numbers from 0 to "):
        explained({"body": {"instances": [{"data": TEXT, "target": CLASSES}]}})


def test_instances_beside_a_picture_are_refused() -> None:
    error = refused({"body": {"instances": [{"data": TEXT}], "data": TEXT}})
    assert str(error) == "received 'instances' together with 'data'; send one or the other"


def test_as_many_instances_as_allowed_and_no_more() -> None:
    assert len(parsed({"body": {"instances": [{"data": TEXT}] * MAX_INSTANCES}}).pictures) == MAX_INSTANCES
    error = refused({"body": {"instances": [{"data": TEXT}] * (MAX_INSTANCES + 1)}})
    assert (type(error), error.status, error.phrase) == (TooManyInstances, 413, "Payload Too Large")
    assert str(error) == "received 4 instances; accepted are at most 3 in one request; send several requests"


MULTIPART = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        pytest.param({"file": PICTURE}, len(PICTURE) + 250, id="one-field"),
        pytest.param({"file": PICTURE, "topk": b"5"}, len(PICTURE) + 500, id="with-topk"),
        pytest.param({"file": PICTURE}, len(PICTURE) + 4096, id="with-a-long-file-name"),
    ],
)
def test_one_multipart_field_is_one_picture(fields: dict[str, Any], length: int) -> None:
    assert parsed(fields, content_type=MULTIPART, content_length=str(length)).pictures == [PICTURE]


def test_two_multipart_fields_of_one_name_are_refused() -> None:
    """TorchServe drops all but the last; the length of the body shows it."""
    error = refused({"file": PICTURE}, content_type=MULTIPART, content_length=str(len(PICTURE) + 4097))
    assert str(error) == (
        f"received more than one picture under one field name ({len(PICTURE) + 4097} bytes, of which the last picture "
        f"has {len(PICTURE)}); {HOW_TO_SEND}"
    )


@pytest.mark.parametrize(
    ("content_type", "length"),
    [
        pytest.param("image/jpeg", "999999", id="no-multipart"),
        pytest.param(MULTIPART, "", id="chunked"),
        pytest.param(MULTIPART, "many", id="no-number"),
    ],
)
def test_length_says_nothing_without_multipart_or_number(content_type: str, length: str) -> None:
    assert parsed({"file": PICTURE}, content_type=content_type, content_length=length).pictures == [PICTURE]


def test_row_is_not_changed() -> None:
    row = {"body": {"data": TEXT, "topk": 5}, "model_name": b"x"}
    parsed(row)
    assert row == {"body": {"data": TEXT, "topk": 5}, "model_name": b"x"}


def test_header_is_found_whatever_its_case_and_only_if_it_is_text() -> None:
    headers = {"ACCEPT": "text/plain", "file": {"content-type": "image/jpeg"}}
    assert header(headers, "accept") == "text/plain"
    assert header(headers, "file") == ""
    assert header(headers, "content-type") == ""


def test_message_tells_how_to_send() -> None:
    assert re.search(r"curl -T dog\.jpg.*curl -F file=@dog\.jpg.*\"data\": \"<base64>\".*\"instances\"", HOW_TO_SEND)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, ExplanationOptions("grad-cam", None)),
        ({"method": "grad-cam"}, ExplanationOptions("grad-cam", None)),
        ({"method": bytearray(b"integrated-gradients")}, ExplanationOptions("integrated-gradients", None)),
        ({"target": b"0"}, ExplanationOptions("grad-cam", 0)),
        ({"target": " 999 "}, ExplanationOptions("grad-cam", 999)),
        ({"target": 7, "method": "integrated-gradients"}, ExplanationOptions("integrated-gradients", 7)),
    ],
    ids=repr,
)
def test_method_and_class_of_an_explanation(fields: dict[str, Any], options: ExplanationOptions) -> None:
    assert explained({"file": PICTURE, **fields}) == Payload([PICTURE], explanation=options)
    json_fields = {k: bytes(v).decode() if isinstance(v, (bytes, bytearray)) else v for k, v in fields.items()}
    assert explained({"body": {"data": TEXT, **json_fields}}) == Payload([PICTURE], explanation=options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": 1000}, "received target=1000; accepted are whole numbers from 0 to 999, the index of a class"),
        ({"target": "-1"}, "received target='-1'; accepted are whole numbers from 0 to 999, the index of a class"),
        ({"target": "cat"}, "received target='cat'; accepted are whole numbers from 0 to 999, the index of a class"),
        ({"target": True}, "received target=True; accepted are whole numbers from 0 to 999, the index of a class"),
        ({"target": [5]}, "received target=[5]; accepted are whole numbers from 0 to 999, the index of a class"),
        ({"method": "lime"}, "received method='lime'; accepted are grad-cam and integrated-gradients"),
        ({"method": ["lime"]}, "received method=['lime']; accepted are grad-cam and integrated-gradients"),
        ({"method": None}, "received method=None; accepted are grad-cam and integrated-gradients"),
    ],
    ids=repr,
)
def test_other_methods_and_classes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=f"^{re.escape(message)}$"):
        explained({"file": PICTURE, **fields})


def test_fields_of_explanations_and_predictions_are_their_own() -> None:
    for fields in ({"method": "grad-cam"}, {"target": 3}):
        assert f"received the unknown field {next(iter(fields))!r}" in str(refused({"file": PICTURE, **fields}))
    with pytest.raises(InvalidRequest, match=r"received the unknown field 'topk'; .*, method, target, and instances"):
        explained({"file": PICTURE, "topk": 5})


def test_slow_explanations_are_one_a_request() -> None:
    two = {"instances": [{"data": TEXT}] * 2}
    assert explained({"body": two}).instances
    assert explained({"body": {**two, **json.loads('{"method": "grad-cam"}')}}).instances
    slow = {"method": "integrated-gradients"}
    assert explained({"body": {"instances": [{"data": TEXT}], **slow}}).pictures == [PICTURE]
    with pytest.raises(TooManyInstances, match=r"^received 2 instances for integrated-gradients, .* in a request$"):
        explained({"body": {**two, **slow}})


def test_what_python_calls_space_around_a_number_is_no_fault_of_the_server() -> None:
    assert topk_of("5\x1f", 10) == 5
    assert topk_of(b" 5\n", 10) == 5
