"""Nothing here asks another host unasked: the commands in a network of their own, in which every packet is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine.network import Alone, alone_in_a_network
from tests.support.machine.ports import free_ports
from tests.support.pictures.golden import CHELSEA
from tests.support.pictures.scenes import write_scenes

pytestmark = pytest.mark.slow


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    """A network of the test's own."""
    with alone_in_a_network(tmp_path) as there:
        yield there


def test_an_attempt_is_recorded(alone: Alone) -> None:
    """Otherwise the other tests couldn't fail."""
    ask = "import socket; s = socket.socket(); s.settimeout(0.2); s.connect_ex(('192.0.2.7', 443))"
    alone.command("-c", ask)
    alone.command("-c", "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'name?', ('127.0.0.53', 53))")
    seen = alone.attempts()
    assert any(line.startswith("192.0.2.7 443") for line in seen), seen
    assert any(line.startswith("127.0.0.53 53") for line in seen), seen


def test_a_server_asks_nobody(alone: Alone, tmp_path: Path) -> None:
    """From the first conversion of the model to the end of the server."""
    port, store = str(free_ports()), str(tmp_path / "store")
    alone.command("scripts/build_archive.py", "--weights", "bundled", "--model-store", store)
    serve = ("scripts/serve.py", "--detach", "--weights", "bundled", "--workers", "1")
    try:
        alone.command(*serve, "--port", port, "--model-store", store)
        alone.command("scripts/predict.py", str(CHELSEA), "--url", f"http://127.0.0.1:{port}")
    finally:
        alone.command("scripts/stop.py", "--port", port)
    assert alone.attempts() == []
    assert alone.strays() == []


def test_training_asks_nobody(alone: Alone, tmp_path: Path) -> None:
    scenes, out = str(write_scenes(tmp_path / "scenes", per_class=8)), str(tmp_path / "out")
    network = ("--growth-rate", "8", "--blocks", "2,2", "--init-features", "16", "--crop", "48")
    alone.command("scripts/train.py", scenes, "--out", out, *network, "--epochs", "1", "--batch", "8")
    alone.command("scripts/evaluate.py", scenes, "--weights", out, "--report", str(tmp_path / "report.html"))
    assert alone.attempts() == []
    assert alone.strays() == []
