"""Every system's learners ask a local person exactly where the site file says so."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.data.site import Site
from fedmedseg.fedata.learner import MaskedDistillationLearner
from fedmedseg.segmentation.learner import SegmentationLearner


@pytest.mark.parametrize("learner", [MaskedDistillationLearner, SegmentationLearner])
@pytest.mark.parametrize(("word", "asks"), [("none", False), ("each_job", True)])
def test_the_site_files_word_decides(site: Site, learner: Any, word: str, asks: bool) -> None:
    _, experiment = read_settings(find_job("fedata"), [])
    made = learner(experiment=experiment, site=dataclasses.replace(site, approval=word))
    assert made.needs_approval is asks
