"""Request row → picture bytes and parameters: every form in which a picture may be sent.

A picture as the body arrives as bytes under ``body``; multipart fields and query parameters under their own
names; JSON, already parsed, under ``body`` (:mod:`handler.body`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from handler.body import HOW_TO_SEND, header, media_type
from handler.errors import InvalidParameter, InvalidRequest, TooManyInstances, quoted

PICTURE_FIELDS = ("file", "data", "body")
INSTANCE_FIELDS = ("data", "b64")
GRAD_CAM, INTEGRATED_GRADIENTS = METHODS = ("grad-cam", "integrated-gradients")
"""How an explanation may be computed; the first is the default."""
URL_SAFE = str.maketrans("-_", "+/")
"""The other alphabet of base64 (RFC 4648, section 5) to the usual one."""
FRAMING_BYTES = 4096
"""What boundary, part headers and file name of one multipart field take at most."""


@dataclass(frozen=True)
class ExplanationOptions:
    """What a request for an explanation asks for: one of METHODS, and the index of a class, None for the best."""

    method: str = GRAD_CAM
    target: int | None = None


@dataclass(frozen=True)
class Payload:
    """What one request asks for.

    ``pictures``: the bytes of each picture, one unless ``instances``. ``topk``: how many classes to
    answer with, None if not asked. ``instances``: the request is KServe V1's list form.
    ``explanation``: what to explain, None for a prediction.
    """

    pictures: list[bytes]
    topk: int | None = None
    instances: bool = False
    explanation: ExplanationOptions | None = None


def parse(
    row: Mapping[str, Any],
    headers: Mapping[str, Any],
    num_classes: int,
    max_instances: int,
    explain: bool = False,
) -> Payload:
    """The payload of one request.

    Args:
        row: of :func:`handler.body.fields_of`: field name to value, bytes, str, or parsed JSON.
        headers: the request's headers.
        num_classes: the largest ``topk``.
        max_instances: pictures that one request may carry.
        explain: it came by the route of explanations, which takes ``method`` and ``target``, not ``topk``.

    Raises:
        InvalidRequest: no picture, several, unknown fields, wrong JSON or wrong base64.
        InvalidParameter: ``topk``, ``method`` or ``target`` is out of range.
        TooManyInstances: more than ``max_instances`` pictures.
    """
    fields = dict(row)
    body = fields.get("body")
    if isinstance(body, dict):
        del fields["body"]
        fields = {**fields, **_json_fields(body)}
    elif isinstance(body, (list, int, float, bool)) or (body is None and "body" in fields):
        raise InvalidRequest(f"received JSON of type {type(body).__name__}, expected an object; {HOW_TO_SEND}")
    elif isinstance(body, (bytes, bytearray)) and not body and len(fields) > 1:
        del fields["body"]  # TorchServe adds an empty body to query parameters
    topk, explanation = None, None
    if explain:
        explanation = _explanation(fields, num_classes)
    elif "topk" in fields:
        topk = topk_of(fields.pop("topk"), num_classes)
    if "instances" in fields:
        pictures, target = _instances(fields, max_instances, num_classes if explain else None)
        if explanation and target is not None:
            explanation = replace(explanation, target=target)
        if explanation and explanation.method != GRAD_CAM and len(pictures) > 1:
            raise TooManyInstances(
                f"received {len(pictures)} instances for {explanation.method}, which takes seconds a picture; "
                "accepted is one in a request"
            )
        return Payload(pictures, topk, True, explanation)
    unknown = sorted(set(fields) - set(PICTURE_FIELDS))
    if unknown:
        raise InvalidRequest(
            f"received the unknown field {quoted(unknown[0])}; accepted are {', '.join(PICTURE_FIELDS)} (one of them), "
            f"{'method, target' if explain else 'topk'}, and instances; {HOW_TO_SEND}"
        )
    if not fields:
        raise InvalidRequest(f"received no picture; {HOW_TO_SEND}")
    if len(fields) > 1:
        raise InvalidRequest(f"received more than one picture (fields {', '.join(sorted(fields))}); {HOW_TO_SEND}")
    ((name, value),) = fields.items()
    picture = _picture(value, f"the field {name!r}")
    _refuse_dropped_fields(headers, picture, row)
    return Payload([picture], topk, explanation=explanation)


def _json_fields(body: dict[str, Any]) -> dict[str, Any]:
    for name in PICTURE_FIELDS:
        if name in body and not isinstance(body[name], str):
            raise InvalidRequest(
                f"received {type(body[name]).__name__} as {name!r}, expected a picture as a base64 string"
            )
    return body


def topk_of(value: Any, num_classes: int) -> int:
    """How many classes a field ``topk`` asks for.

    Raises:
        InvalidParameter: it is no number from 1 to ``num_classes``.
    """
    number = _whole_number(value)
    if number is None or not 1 <= number <= num_classes:
        raise InvalidParameter(
            f"received topk={quoted(text_of(value))}; accepted are whole numbers from 1 to {num_classes}, "
            "the number of classes"
        )
    return number


def _explanation(fields: dict[str, Any], num_classes: int) -> ExplanationOptions:
    """What the fields ``method`` and ``target`` ask for; both are taken out of ``fields``."""
    method = text_of(fields.pop("method", GRAD_CAM))
    if method not in METHODS:
        raise InvalidParameter(f"received method={quoted(method)}; accepted are {' and '.join(METHODS)}")
    if "target" not in fields:
        return ExplanationOptions(method)
    return ExplanationOptions(method, _target(fields.pop("target"), num_classes))


def _target(value: Any, num_classes: int) -> int:
    target = _whole_number(value)
    if target is None or not 0 <= target < num_classes:
        raise InvalidParameter(
            f"received target={quoted(text_of(value))}; accepted are whole numbers from 0 to {num_classes - 1}, "
            "the index of a class"
        )
    return target


def text_of(value: Any) -> Any:
    """A multipart field as text; JSON's values as they are."""
    return bytes(value).decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else value


def _whole_number(value: Any) -> int | None:
    """The number in a field, None if it holds none."""
    text = text_of(value)
    if isinstance(text, str):
        digits = text.strip()  # of more than int() leaves out: "0\x1f"
        return int(digits) if digits.isdecimal() and len(digits) < 10 else None
    return text if isinstance(text, int) and not isinstance(text, bool) else None


def _instances(fields: dict[str, Any], max_instances: int, num_classes: int | None) -> tuple[list[bytes], int | None]:
    """The pictures of KServe V1's list, and the class that they name as ``target``, as TorchServe's pages have it.

    Args:
        fields: of the request.
        max_instances: at most.
        num_classes: the classes that may be explained; None for a prediction, where a target says nothing.
    """
    instances = fields["instances"]
    extra = sorted(set(fields) - {"instances"})
    if extra:
        raise InvalidRequest(f"received 'instances' together with {quoted(extra[0])}; send one or the other")
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest(
            'received \'instances\' that is no list with at least one picture; expected [{"data": "<base64>"}, …]'
        )
    if len(instances) > max_instances:
        raise TooManyInstances(
            f"received {len(instances)} instances; accepted are at most {max_instances} in one request; "
            "send several requests"
        )
    pictures, targets = [], set()
    for number, instance in enumerate(instances):
        target = None
        if isinstance(instance, dict) and "target" in instance:
            target = instance["target"]
            instance = {name: value for name, value in instance.items() if name != "target"}  # noqa: PLW2901
        targets.add(None if num_classes is None or target is None else _target(target, num_classes))
        if not isinstance(instance, dict) or len(instance) != 1 or next(iter(instance)) not in INSTANCE_FIELDS:
            raise InvalidRequest(
                f'instance {number} is wrong; expected {{"data": "<base64>"}} or {{"b64": "<base64>"}}, nothing else'
            )
        ((name, value),) = instance.items()
        if not isinstance(value, str):
            raise InvalidRequest(f"instance {number}: received {type(value).__name__}, expected a base64 string")
        pictures.append(_picture(value, f"instance {number}, {name!r}"))
    if len(targets) > 1:
        raise InvalidParameter("received instances with different targets; send a request for each target")
    return pictures, targets.pop()


def _picture(value: Any, where: str) -> bytes:
    """Bytes as they are; text as base64, with or without a ``data:`` URL's prefix."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if not isinstance(value, str):
        raise InvalidRequest(f"received {type(value).__name__} in {where}, expected a picture; {HOW_TO_SEND}")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()).translate(URL_SAFE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"received text in {where} that isn't base64 ({error}); encode the picture's bytes as base64"
        ) from None


def _refuse_dropped_fields(headers: Mapping[str, Any], picture: bytes, row: Mapping[str, Any]) -> None:
    """Refuse several pictures under one field name.

    TorchServe keeps the last of several fields of one name. That earlier ones were dropped shows
    in the length of the body, which is then far longer than what arrived.
    """
    length = header(headers, "content-length")
    if media_type(headers) != "multipart/form-data" or not length.isdecimal():
        return
    if int(length) - len(picture) > FRAMING_BYTES * len(row):
        raise InvalidRequest(
            f"received more than one picture under one field name ({length} bytes, of which the last picture "
            f"has {len(picture)}); {HOW_TO_SEND}"
        )
