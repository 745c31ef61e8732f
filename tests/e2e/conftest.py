"""A real server for the session: the bundled model behind the real TorchServe, on free ports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lib.paths import BUNDLED
from tests.support.documents import checkout
from tests.support.servers.running import Running, serving


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store of the tests' own: the user's archive stays as it is."""
    return tmp_path_factory.mktemp("model_store")


@pytest.fixture(scope="session")
def server(model_store: Path) -> Iterator[Running]:
    """The bundled model behind two workers."""
    with serving(model_store, "--workers", "2", weights=BUNDLED) as running:
        yield running


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The folder in which the commands of a document run."""
    with checkout(tmp_path_factory.mktemp("checkout")) as shell:
        yield shell
