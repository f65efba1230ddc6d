"""How a study's networks predict a scan: with the overlap that it names, and the student before it was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.cardiac_ct.models import Networks
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.core.config import Experiment
from fedmedseg.data.site import Site

Predict = Callable[..., dict[str, torch.Tensor]]
TASKS = ("calc", "coronaries")
"""A head of the student's, and the new last layer."""


@pytest.fixture
def predict(study: Callable[..., Experiment], new_site: Callable[[str], Site]) -> Predict:
    """predict(tensors, overlap=0.5, untrained=True): probabilities of a scan of two patches."""
    site = new_site("site")
    inputs = np.random.default_rng(2).normal(size=(1, 64, 32, 64)).astype(np.float32)

    def make(
        tensors: Mapping[str, torch.Tensor] | None = None, *, overlap: float = 0.0, **options: Any
    ) -> dict[str, torch.Tensor]:
        experiment = study(segmentation={"overlap": overlap})
        networks = Networks(experiment=experiment, site=site, tensors=tensors or initial_shared(experiment))
        return networks.predict_student(**options)(inputs, TASKS)

    return make


def test_patches_overlap_as_the_study_says(predict: Predict) -> None:
    apart, over = predict(overlap=0.0), predict(overlap=0.5)
    assert not any(torch.equal(apart[task], over[task]) for task in TASKS)


def test_the_untrained_student_has_the_weights_of_the_studys_seed_whatever_was_trained(
    predict: Predict, study: Callable[..., Experiment]
) -> None:
    trained = {name: tensor + 0.1 for name, tensor in initial_shared(study()).items()}
    first, learned, untrained = predict(), predict(trained), predict(trained, untrained=True)
    for task in TASKS:
        assert torch.equal(untrained[task], first[task])
        assert not torch.equal(learned[task], first[task])
