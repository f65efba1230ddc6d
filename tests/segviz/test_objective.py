"""One site's steps: the rate's schedule and what a round's end leaves for the next."""

from __future__ import annotations

import pytest

from fedmedseg.core.training_settings import OptimizerSection
from fedmedseg.segviz.objective import rate


def section(warmup: float) -> OptimizerSection:
    return OptimizerSection(learning_rate=0.1, warmup_fraction=warmup)


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    rates = [rate(section(0.5), "constant", step, 4) for step in range(4)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1])
    assert {rate(section(0.0), "constant", step, 4) for step in range(4)} == {0.1}


def test_a_cosine_falls_over_the_steps_of_all_rounds() -> None:
    rates = [rate(section(0.0), "cosine", step, 4) for step in range(4)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[2] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
