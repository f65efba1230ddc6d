"""The wait between two requests for work: short in short rounds, a small share of long ones, and bounded."""

from __future__ import annotations

import pytest

from fedmedseg.core.pace import LONGEST, SHORTEST, request_interval


@pytest.mark.parametrize(("elapsed", "seconds"), [(0.0, 0.02), (1.0, 0.02), (10.0, 0.2), (50.0, 1.0), (3600.0, 2.0)])
def test_the_wait_grows_with_the_round_and_has_its_bounds(elapsed: float, seconds: float) -> None:
    assert request_interval(elapsed) == pytest.approx(seconds)
    assert SHORTEST <= request_interval(elapsed) <= LONGEST
