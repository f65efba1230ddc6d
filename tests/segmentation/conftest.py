"""A small study, volumes in memory and a network of two convolutions for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from fedmedseg.core.config import parse_experiment
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.data.datalist import Case
from fedmedseg.data.site import Site


def merged(base, changes):
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return result


class MemoryVolumes:
    """What training and evaluation use of ``Volumes``, over arrays given by the test."""

    section = "training"

    def __init__(self, images, labels, patients=None, annotated=None, spacing=(1.0, 1.0, 2.0)):
        self._images = [np.asarray(image, dtype=np.float32)[None] for image in images]
        self._labels = [None if label is None else np.asarray(label, dtype=np.uint8) for label in labels]
        patients = patients or [f"patient-{index}" for index in range(len(images))]
        annotated = annotated or [None] * len(images)
        self._spacing = spacing
        self.cases = [
            Case(
                image=Path(f"secret-{index}.nii.gz"),
                label=None if label is None else Path("label.nii.gz"),
                patient=patient,
                annotated_labels=marked,
                key=f"key{index}",
            )
            for index, (label, patient, marked) in enumerate(zip(labels, patients, annotated, strict=True))
        ]
        self.patients = sorted(set(patients))

    def __len__(self):
        return len(self.cases)

    def image(self, index):
        return self._images[index]

    def label(self, index):
        return self._labels[index]

    def points(self, index):
        label = self._labels[index]
        return {int(v): np.argwhere(label == v).astype(np.int32) for v in np.unique(label) if v}

    def spacing(self, index):
        return self._spacing

    native_label = label
    native_spacing = spacing

    def to_native(self, index, probabilities):
        return probabilities


def disc_volumes(count, *, seed=0, size=64, depth=3, **options):
    """Bright discs on dark noise, labelled 1."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    images, labels = [], []
    for _ in range(count):
        centre = rng.integers(size // 3, 2 * size // 3, size=2)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (size // 6) ** 2
        label = np.repeat(disc[:, :, None], depth, axis=2)
        images.append(label * 2.0 - 1.0 + rng.normal(scale=0.3, size=label.shape))
        labels.append(label)
    return MemoryVolumes(images, labels, **options)


@pytest.fixture
def make_experiment():
    base = {
        "system": "fedata",
        "study": "small",
        "data": {
            "role": "cmr",
            "modality": "mr",
            "spatial_dims": 2,
            "labels": {1: "disc"},
            "crop": [64, 32],
            "phantom": {"family": "cine_mr", "unlabeled": 0, "training": 2, "validation": 1, "test": 2},
        },
        "network": {"name": "swin_unetr", "feature_size": 12, "depths": [1, 1, 1, 1], "window": 4},
        "segmentation": {
            "steps": 6,
            "batch": 2,
            "validate_every": 3,
            "overlap": 0.25,
            "optimizer": {"learning_rate": 0.01, "warmup_fraction": 0.0},
        },
        "stages": {"pretraining": {}, "fine_tuning": {}, "evaluation": {}},
        "fedata": {"local_steps": 1, "target_blocks": 1, "optimizer": {"learning_rate": 0.001}},
    }
    return lambda **changes: parse_experiment(merged(base, changes))


@pytest.fixture
def discs():
    return disc_volumes


@pytest.fixture
def memory_volumes():
    return MemoryVolumes


@pytest.fixture
def make_net():
    def build(classes=2, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, classes, 1))

    return build


@pytest.fixture
def make_task(tmp_path):
    def build(stage, *, experiment, run="run1", site="site-1", base="base", rounds=1, aborted=lambda: False, **options):
        state = SiteState(tmp_path / "state", study=experiment.study, experiment=experiment.digest, site=site, run=run)
        return Task(
            site=site,
            stage=stage,
            round=0,
            rounds=rounds,
            seed=experiment.seed,
            base=base,
            state=state,
            progress=Progress(site=site, stage=stage, round=0, rounds=rounds),
            aborted=aborted,
            **options,
        )

    return build


def write_case(folder, name, *, seed, labelled=True):
    rng = np.random.default_rng(seed)
    x, y, _ = np.meshgrid(np.arange(64), np.arange(64), np.arange(2), indexing="ij")
    disc = (x - rng.integers(26, 38)) ** 2 + (y - rng.integers(26, 38)) ** 2 < 100
    image = 100.0 + 200.0 * disc + rng.normal(scale=20.0, size=disc.shape)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), folder / f"{name}.nii.gz")
    entry = {"image": f"{name}.nii.gz", "patient": name.split("_")[0]}
    if labelled:
        nibabel.save(nibabel.Nifti1Image(disc.astype(np.uint8), affine), folder / f"{name}_label.nii.gz")
        entry["label"] = f"{name}_label.nii.gz"
    return entry


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    sections = {
        "training": ["PlantedAda_ED", "PlantedAda_ES", "PlantedBea_ED"],
        "validation": ["PlantedCyd_ED"],
        "test": ["PlantedDee_ED", "PlantedDee_ES", "PlantedEve_ED"],
    }
    content = {
        section: [write_case(folder, name, seed=len(section) * 10 + index) for index, name in enumerate(names)]
        for section, names in sections.items()
    }
    (folder / "datalist.json").write_text(json.dumps(content))
    return Site(
        name="site-1",
        state_root=tmp_path / "state",
        cache=tmp_path / "cache",
        models=tmp_path / "models",
        device="cpu",
        datasets={"cmr": folder / "datalist.json"},
        salt="pepper-and-salt",
        simulated=True,
    )
