"""The image, built once for all tests of what a team runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.lib.paths import ROOT
from tests.conftest import WITH_IMAGE
from tests.support.deployment.images import Engine

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a server here is slow; the first test that needs the image waits for its build."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ())) if item.path.parent == FOLDER else set()
        if fixtures & {"image", "server", "hosts"}:
            item.add_marker(pytest.mark.slow)
        if "image" in fixtures:
            assert item.path.relative_to(ROOT).as_posix() in WITH_IMAGE, "it would be built once more"
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """buildah and podman on a store that goes with the session."""
    folder = Path(tempfile.mkdtemp(prefix="densenet-images-", dir="/var/tmp"))  # pytest's folders stay for three runs
    try:
        engine = Engine(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="session")
def image(engine: Engine) -> dict[str, Any]:
    """The image ``IMAGE``, built from the Dockerfile; what ``podman image inspect`` says of it."""
    engine.make_base()
    engine.build()
    return engine.inspect()
