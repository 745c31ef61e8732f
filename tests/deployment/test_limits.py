"""A server in a control group of 2 GiB meets no limit of it; the long form is tests/endurance/limits.py."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.endurance.limiting import GIB, confined, press
from tests.support.servers.front_door import front_door

SIZE = 2 * GIB


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("through_front_door", [False, True], ids=["straight", "front-door"])
def test_nothing_that_is_sent_meets_the_limit_of_a_container(tmp_path: Path, through_front_door: bool) -> None:
    with ExitStack() as stack:
        server, group = stack.enter_context(confined(SIZE, tmp_path, workers=1))
        port = stack.enter_context(front_door(f"127.0.0.1:{server.port}")).port if through_front_door else None
        report = press(server, group, SIZE, rounds=1, port=port)
    assert not report.broken(), report.text()
    assert {"200", "400", "503"} <= {status for _, status in report.answers} | (
        {"503"} if through_front_door else set()
    )
