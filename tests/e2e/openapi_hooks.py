"""What schemathesis leaves out: what takes too long, and what has no one answer."""

from __future__ import annotations

from typing import Any

import schemathesis

from handler.payload import INTEGRATED_GRADIENTS


@schemathesis.hook
def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
    """Integrated gradients, which take seconds a picture, but for the few of the coverage phase, which asks no hook."""
    return not (isinstance(body, dict) and body.get("method") == INTEGRATED_GRADIENTS)


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """``topk`` in the address and in the body: the body's counts, whatever the other is."""
    body: Any = case.body
    return not ("topk" in (case.query or {}) and isinstance(body, dict) and "topk" in body)
