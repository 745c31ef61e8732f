"""A server in a control group of 2 GiB meets no limit of it; the long form is tests/endurance/limits.py."""

from __future__ import annotations

import pytest

from tests.endurance import limits


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("through_front_door", [False, True], ids=["straight", "front-door"])
def test_nothing_that_is_sent_meets_the_limit_of_a_container(through_front_door: bool) -> None:
    report = limits.judge(2, through_front_door, rounds=1, at_once=40)  # whose largest bodies are 1.25 GiB
    assert not report.broken(), report.text()
    assert {"200", "400", "503"} <= {status for _, status in report.answers} | (
        {"503"} if through_front_door else set()
    )
