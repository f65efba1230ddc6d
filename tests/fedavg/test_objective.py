"""The rate of a site's steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from fedmedseg.core.config import Experiment
from fedmedseg.fedavg.objective import rate

Study = Callable[..., Experiment]


def test_the_rate_falls_along_a_cosine_over_all_rounds_or_stays(study: Study) -> None:
    section = {"learning_rate": 0.1}
    falling, constant = study(fedavg={"sgd": section}), study(fedavg={"sgd": section, "schedule": "constant"})
    assert [rate(falling, step) for step in range(4)] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    )
    assert [rate(constant, step) for step in range(4)] == [0.1] * 4


def test_without_sgd_it_is_the_studys_own(study: Study) -> None:
    optimizer = {"learning_rate": 0.3, "warmup_fraction": 0.5}
    experiment = study(segmentation={"optimizer": optimizer}, fedavg={"schedule": "constant"})
    assert [rate(experiment, step) for step in range(4)] == pytest.approx([0.15, 0.3, 0.3, 0.3])
