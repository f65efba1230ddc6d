"""Two sites of a few small slices with labels, under a network of a few hundred parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from fedmedseg.core.config import Experiment
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, write_job

SITES = ("site-1", "site-2")
TINY: dict[str, Any] = {
    "study": "tiny",
    "data": {
        "role": "shapes",
        "labels": {1: "disc", 2: "square"},
        "crop": [16, 16],
        "phantom": None,
    },
    "network": {"name": "unet", "channels": [4, 8], "res_units": 1},
    "fedavg": {"starts": ["personal"]},
    "segmentation": {"steps": 4, "batch": 2, "validate_every": 1, "test_untrained": False},
    "stages": {"training": {"rounds": 2}, "fine_tuning": {"rounds": 0}},
}
SGD = {"learning_rate": 0.05, "momentum": 0.0}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study(fedavg={...}): the tiny study with changes."""
    return lambda **changes: read_settings(find_job("fedavg"), [TINY, changes])[1]


def write_list(folder: Path, *, seed: int, training: int) -> Path:
    """A data list of ``training`` cases, one to validate on and one to test on: a disc and a square."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for number, section in enumerate([*["training"] * training, "validation", "test"]):
        label = np.zeros((16, 16, 2), dtype=np.uint8)
        x, y = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
        at = rng.integers(4, 7, size=2)
        label[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 9] = 1
        label[9:14, 8:14] = 2
        image = (100.0 + 60.0 * label + rng.normal(scale=8.0, size=label.shape)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"i{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / f"l{number}.nii.gz")
        names = {"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz", "patient": f"Ada{number}"}
        content[section].append(names)
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder / "datalist.json"


@pytest.fixture
def federate(tmp_path: Path) -> Callable[..., InProcessFederation]:
    """federate(name="a", fedavg={...}): the tiny study's federation; site-1 has two cases, every other one."""

    def make(*, name: str = "a", sites: tuple[str, ...] = SITES, **changes: Any) -> InProcessFederation:
        settings, _ = read_settings(find_job("fedavg"), [TINY, changes])
        local = tmp_path / name / "w" / "local" / "sites"
        local.mkdir(parents=True)
        for number, site in enumerate(sites):
            listed = write_list(tmp_path / name / "data" / site, seed=number, training=1 if number else 2)
            content = {"datasets": {"shapes": {"list": str(listed)}}, "salt": "pepper-and-salt"}
            (local / f"{site}.yaml").write_text(yaml.safe_dump(content))
        job = write_job(find_job("fedavg"), settings, tmp_path / name / "job")
        return InProcessFederation(job=job, workspace=tmp_path / name / "w", sites=list(sites), run="run")

    return make
