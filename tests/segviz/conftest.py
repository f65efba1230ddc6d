"""Sites of a few small slices, each with labels of its own choice, under a network of a few hundred parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

TINY: dict[str, Any] = {
    "study": "tiny",
    "data": {
        "role": "shapes",
        "modality": "mr",
        "spatial_dims": 2,
        "labels": {1: "disc", 2: "square", 3: "bar"},
        "crop": [24, 24],
        "spacing": [None, None, None],
        "phantom": None,
    },
    "network": {"name": "unet", "channels": [4, 8], "res_units": 1},
    "segviz": {"local_baseline": False},
    "segmentation": {"steps": 4, "batch": 2, "validate_every": 1, "test_untrained": False},
    "stages": {"training": {"rounds": 2}},
}
Marks = Mapping[str, list[tuple[int, ...] | None]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study(segviz={...}): the tiny study with changes."""
    return lambda **changes: read_settings(find_job("segviz"), [TINY, changes])[1]


def shapes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image and label (24, 24, 2): a disc, a square and a bar of different brightness."""
    label = np.zeros((24, 24, 2), dtype=np.uint8)
    x, y = np.meshgrid(np.arange(24), np.arange(24), indexing="ij")
    at = rng.integers(5, 8, size=2)
    label[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 16] = 1
    label[14:20, 3:9] = 2
    label[4:20, 15 + rng.integers(0, 3)] = 3
    image = 100.0 + 60.0 * label + rng.normal(scale=8.0, size=label.shape)
    return image.astype(np.float32), label


def write_list(folder: Path, marks: list[tuple[int, ...] | None], *, seed: int) -> Path:
    """A data list whose training cases mark what ``marks`` says, case by case; test cases mark everything."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    plan = [*(("training", mark) for mark in marks), ("validation", marks[0]), ("test", None)]
    for number, (section, mark) in enumerate(plan):
        image, label = shapes(rng)
        entry: dict[str, Any] = {"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz", "patient": f"Ada{number}"}
        if mark is not None:
            entry["annotated_labels"] = list(mark)
            label = np.where(np.isin(label, mark), label, 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / entry["image"])
        if mark == ():
            del entry["label"]
        else:
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / entry["label"])
        content[section].append(entry)
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder / "datalist.json"


ONE_EACH: Marks = {"site-1": [(1,), (1,)], "site-2": [(2,), (2,)]}


@pytest.fixture
def federate(tmp_path: Path) -> Callable[..., InProcessFederation]:
    """federate(marks=..., name="a", segviz={...}): the tiny study's federation over new sites."""

    def make(
        *, marks: Marks = ONE_EACH, name: str = "a", seeds: Mapping[str, int] | None = None, **changes: Any
    ) -> InProcessFederation:
        settings, _ = read_settings(find_job("segviz"), [TINY, changes])
        home = tmp_path / name
        local = home / "w" / "local" / "sites"
        local.mkdir(parents=True)
        for number, (site, marked) in enumerate(marks.items()):
            listed = write_list(home / "data" / site, marked, seed=(seeds or {}).get(site, number))
            content = {"datasets": {"shapes": {"list": str(listed)}}, "salt": "pepper-and-salt"}
            (local / f"{site}.yaml").write_text(yaml.safe_dump(content))
        job = write_job(find_job("segviz"), settings, home / "job")
        return InProcessFederation(job=job, workspace=home / "w", sites=list(marks), run="run")

    return make
