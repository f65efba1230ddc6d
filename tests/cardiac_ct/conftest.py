"""Sites of a few phantoms, each annotating what the test says, under networks of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, write_job

TINY: dict[str, Any] = {
    "study": "tiny",
    "data": {
        "spacing": [3.0, 3.0, 3.0],
        "crop": [64, 32, 32],
        "phantom": {
            "annotation": "shared_out",
            "sites": 2,
            "training": 1,
            "unlabeled": 1,
            "validation": 0,
            "test": 1,
            "size": [96, 56, 56],
        },
    },
    "network": {"feature_size": 12, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": 2},
    "cardiac_ct": {
        "teacher": {"filters": [4, 4, 4], "strides": [1, 2, 2], "size": [32, 32, 24], "supervised": 1, "steps": 2},
        "head_steps": 1,
        "transfer": {"steps": 1, "cnn": "hps"},
    },
    "segmentation": {"steps": 2, "batch": 1, "test_untrained": False, "overlap": 0.0},
    "stages": {"teacher_hps": {"rounds": 1}, "teacher_ms": {"rounds": 1}, "teacher_calc": {"rounds": 1}},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study(cardiac_ct={...}): the tiny study with changes."""
    return lambda **changes: read_settings(find_job("cardiac_ct"), [TINY, changes])[1]


@pytest.fixture
def federate(tmp_path: Path) -> Callable[..., InProcessFederation]:
    """federate(name="a", sites=2, cardiac_ct={...}): the tiny study's federation over new phantom sites."""

    def make(*, name: str = "a", sites: int = 2, **changes: Any) -> InProcessFederation:
        settings, _ = read_settings(find_job("cardiac_ct"), [TINY, changes])
        home = tmp_path / name
        job = write_job(find_job("cardiac_ct"), settings, home / "job")
        names = [f"site-{number + 1}" for number in range(sites)]
        return InProcessFederation(job=job, workspace=home / "w", sites=names, run="run")

    return make
