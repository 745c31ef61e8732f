"""The page for people: drop a picture on it, see what the network says and where it looked.

One answer holds everything, so that the page works offline and its Content-Security-Policy can
forbid the rest: ``page.html`` with ``page.css``, ``page.js`` and the model's facts put in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from handler.body import header
from handler.card import ModelCard
from handler.explanation import OPACITY, PALETTE
from handler.responses import Response, prefers

HTML = "text/html; charset=utf-8"


class Page:
    """The page of one model, made once.

    Args:
        model_name: under which TorchServe serves the model.
        card, labels: what the page says about it.
    """

    def __init__(self, model_name: str, card: ModelCard, labels: Sequence[str]) -> None:
        style, script = _read("page.css"), _read("page.js")
        facts = {
            "predictions": f"/predictions/{quote(model_name, safe='')}",
            "explanations": f"/explanations/{quote(model_name, safe='')}",
            "card": card.to_dict(),
            "labels": list(labels),
            "palette": PALETTE,
            "opacity": OPACITY,
        }
        html = _read("page.html")
        for mark, content in (
            ("/* page.css */", style),
            ("/* page.js */", script),
            # last, so that nothing is put into it; "<" as an escape: no label can end the element
            ("/* facts */", json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")),
        ):
            html = html.replace(mark, content)
        policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'; trusted-types 'none'"
        )
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept",
        }
        self.response = Response(200, "OK", HTML, html.encode(), headers=headers)


def wants_page(row: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Whether a request is a browser's that opens the address: nothing is sent, and HTML is preferred.

    The method would say it better, but TorchServe doesn't pass it on.
    """
    body = row.get("body")
    nothing = len(row) == 1 and isinstance(body, (bytes, bytearray)) and not body
    return nothing and not header(headers, "content-type") and prefers(header(headers, "accept"), "text/html")


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression that allows an inline element with this text (CSP Level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
