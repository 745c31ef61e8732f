"""A plugin of pytest, ``-p tests.support.backwards``: the last test first, since none may need another before it."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Turn the order round."""
    items.reverse()
