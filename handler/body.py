"""The fields of a request, whatever its media type says: a body is read by its content.

TorchServe hands over a body as it is, or as parsed JSON where the media type is exactly that. curl calls what
it sends a form, ``fetch`` calls it text, PowerShell writes UTF-16 or a byte order mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from handler.errors import InvalidRequest, quoted

QUERY_HEADER = "X-Densenet-Query"
"""From the agent: the query of a path whose query TorchServe drops."""
MAX_FIELDS = 16
LOOKED_AT = 100
"""Bytes of a body that say what it is; there are bodies of 32 MiB of space."""
_JSON = re.compile(rb"(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?[\0\s]*[{\[]")
"""How JSON begins, in UTF-8 or UTF-16; no picture that is read begins so."""
_FORM = re.compile(rb"(file|data|body|instances|topk|method|target)=")
"""How a form of this server's fields begins, where curl's media type is that of one."""
HOW_TO_SEND = (
    "send one picture: as the body (curl -T dog.jpg), as a multipart field 'file', 'data' or 'body' "
    '(curl -F file=@dog.jpg), or as JSON {"data": "<base64>"} or {"instances": [{"data": "<base64>"}, …]}'
)


def header(headers: Mapping[str, Any], name: str) -> str:
    """The value of a header whatever its case, "" if there is none."""
    wanted = name.lower()
    return next((v for k, v in headers.items() if k.lower() == wanted and isinstance(v, str)), "")


def media_type(headers: Mapping[str, Any]) -> str:
    """Type and subtype of the body, in lowercase."""
    return header(headers, "content-type").partition(";")[0].strip().lower()


def fields_of(row: Mapping[str, Any], headers: Mapping[str, Any], is_json: bool = True) -> dict[str, Any]:
    """The fields of a request, with those of its query; JSON is parsed, a form taken apart.

    Args:
        row: field name to value, as TorchServe has them.
        headers: the request's headers.
        is_json: JSON in the body is all of it, and nothing stands behind it.

    Raises:
        InvalidRequest: the body is JSON that can't be parsed, or a field is there twice.
    """
    fields = {name: value for name, value in row.items() if name != "model_name"}  # a parameter of /invocations
    kind, body = media_type(headers), fields.get("body")
    if isinstance(body, str) and kind.startswith("text/"):  # which TorchServe has decoded
        body = body.encode("utf-8", "surrogatepass")
    if isinstance(body, (bytes, bytearray)) and kind != "multipart/form-data" and is_json:
        begin = bytes(body[:LOOKED_AT])
        if kind.endswith("json") or _JSON.match(begin):
            fields["body"] = _parsed(body)
        elif _FORM.match(begin):
            del fields["body"]
            _add(fields, bytes(body).decode("latin-1"), "the form")
    query = header(headers, QUERY_HEADER)
    if query:
        _add(fields, query, "the query")
    return fields


def _parsed(body: bytes | bytearray) -> Any:
    try:
        return json.loads(body)  # in UTF-8, UTF-16 or UTF-32, with or without a byte order mark
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"received a JSON body that can't be parsed ({error}); {HOW_TO_SEND}") from None


def _add(fields: dict[str, Any], text: str, where: str) -> None:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise InvalidRequest(f"received more than {MAX_FIELDS} fields in {where}; {HOW_TO_SEND}") from None
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"received the field {quoted(name)} in {where}, and once more; send it once")
        fields[name] = value
