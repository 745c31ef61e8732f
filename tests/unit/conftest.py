"""A tiny model and a handler that has loaded it, for tests without a server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

import handler.metrics
from handler.densenet_handler import DenseNetHandler
from scripts.lib.model_folder import ModelFolder
from tests.support.servers.worker import config_of, start, write_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _quiet_metrics() -> Iterator[None]:
    """What is counted is reported when a test says so, not in between by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler.metrics, "REPORT_SECONDS", 1e6)
        yield


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary folder of this process' own, as each server has one: locks in it are for one server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model folder that tests read and don't change."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_handler(tiny_model: ModelFolder) -> DenseNetHandler:
    """A handler that is ready; it keeps nothing between batches that a test could notice."""
    return start(tiny_model.path, config_of(tiny_model))
