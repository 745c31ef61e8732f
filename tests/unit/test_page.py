"""The page as text: what is put into it, and what its headers allow. tests/e2e/test_page.py opens it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest

from handler.densenet_handler import DenseNetHandler
from handler.page import Page, wants_page
from tests.support.pictures.made import jpeg
from tests.support.servers.worker import LABELS, Request, serve, tiny_card

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
HOSTILE = ["</script><script>alert(1)</script>", "<!--<script>", "/* page.js */", "Bächli & Söhne", "\u2028", "a", "b"]


def inline(html: str, element: str) -> str:
    """The text of the one inline style or script without attributes."""
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    assert isinstance(text, str)
    return text


def facts(html: str) -> Any:
    """The JSON in the page."""
    (text,) = re.findall(r'<script type="application/json" id="model">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


@pytest.mark.parametrize("labels", [LABELS, HOSTILE], ids=["labels", "hostile"])
def test_the_page_holds_the_model_and_nothing_that_its_policy_forbids(labels: list[str]) -> None:
    response = Page("dense net/1", tiny_card(), labels).response
    html = response.body.decode()
    assert (response.status, response.content_type) == (200, "text/html; charset=utf-8")
    assert facts(html)["labels"] == labels
    assert facts(html)["card"] == tiny_card().to_dict()
    assert facts(html)["predictions"] == "/predictions/dense%20net%2F1"
    assert html.count("<script") == html.count("</script>") == 2
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    for element in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(inline(html, element).encode()).digest()).decode()
        assert policy[f"{element}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"(?:src|href)=\"?https?:|@import|url\(|\sstyle=|\son\w+=", html)


@pytest.mark.parametrize(
    ("row", "headers", "page"),
    [
        pytest.param({"body": b""}, {"accept": BROWSER}, True, id="browser"),
        pytest.param({"body": bytearray()}, {"ACCEPT": "text/html"}, True, id="html"),
        pytest.param({"body": b""}, {}, False, id="no-accept"),
        pytest.param({"body": b""}, {"accept": "*/*"}, False, id="curl"),
        pytest.param({"body": b""}, {"accept": "text/html, application/json"}, False, id="json-as-well"),
        pytest.param({"body": jpeg()}, {"accept": BROWSER}, False, id="picture"),
        pytest.param({"body": {}}, {"accept": BROWSER}, False, id="json"),
        pytest.param({"body": b"", "topk": "5"}, {"accept": BROWSER}, False, id="parameters"),
        pytest.param({}, {"accept": BROWSER}, False, id="no-body"),
        pytest.param({"body": b""}, {"accept": BROWSER, "content-type": "image/png"}, False, id="empty-upload"),
    ],
)
def test_the_page_is_for_browsers_that_open_the_address(row: Any, headers: dict[str, str], page: bool) -> None:
    assert wants_page(row, headers) is page


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_page_in_a_batch_harms_nobody_else(tiny_handler: DenseNetHandler, position: int) -> None:
    requests = [Request({"body": jpeg(1)}, {}), Request({"body": b""}, {})]
    requests.insert(position, Request({"body": b""}, {"Accept": BROWSER}))
    answers = serve(tiny_handler, requests)
    page = answers.pop(position)
    assert page.content_type == "text/html; charset=utf-8"
    assert facts(page.body)["card"]["name"] == "densenet-tiny"
    assert "Content-Security-Policy" in page.headers
    assert [answer.status for answer in answers] == [200, 400]
    assert not any(answer.headers for answer in answers)
