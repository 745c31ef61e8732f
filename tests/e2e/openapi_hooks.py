"""What schemathesis leaves out: what TorchServe's HTTP decoder answers with 500 before the handler sees it."""

from __future__ import annotations

from typing import Any

import schemathesis

BLANKS = "".join(map(chr, range(33)))
"""What Java's ``String.trim`` takes away."""


@schemathesis.hook
def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
    """Multipart fields without a name, or with one of blanks and control characters (docs/http.md)."""
    return not (isinstance(body, dict) and any(not name.strip(BLANKS) for name in body))


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """``topk`` in the address and in the body: the body's counts, whatever the other is."""
    body: Any = case.body
    return not ("topk" in (case.query or {}) and isinstance(body, dict) and "topk" in body)
