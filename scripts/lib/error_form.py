"""TorchServe's error form, which the handler and the front door use too."""

from __future__ import annotations

import json


def error_of(text: str, reason: str) -> tuple[str, str]:
    """Type and message of an answer that isn't 2xx: those of TorchServe's error form, else its text or reason.

    Args:
        text: the body of the answer.
        reason: the phrase of its status line.
    """
    try:
        data = json.loads(text)
        return str(data.get("type", "")), str(data["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", text.strip()[:200] or reason
