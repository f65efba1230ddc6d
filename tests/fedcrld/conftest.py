"""A small FedCRLD study, labelled volumes in memory and a site of temporary folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.compute import SHIPPED
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.data.datalist import Case
from fedmedseg.fedcrld.batches import EpochBatches
from fedmedseg.fedcrld.config import STAGE
from fedmedseg.fedcrld.learner import RelocalizationLearner
from fedmedseg.fedcrld.objective import RelocalizationObjective
from fedmedseg.fedcrld.sharing import shared_names
from fedmedseg.segmentation.starts import initial_network

LATE = {"role": "lge", "labels": {1: "left", 2: "wall", 3: "right", 4: "scar"}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def content(*, rounds: int = 3, tuning: int = 0, data: Mapping[str, Any] = {}, **fedcrld: Any) -> dict[str, Any]:
    return {
        "system": "fedcrld",
        "study": "test",
        "data": {
            "role": "cmr",
            "modality": "mr",
            "spatial_dims": 3,
            "labels": {1: "left", 2: "wall", 3: "right"},
            "crop": [16, 16, 2],
            **data,
        },
        "network": {"name": "relocalization", "width": 8},
        "segmentation": {
            "steps": 2, "batch": 1, "validate_every": 2, "augment": False, "optimizer": {"learning_rate": 1e-3},
        },
        "stages": {STAGE: {"rounds": rounds}, "fine_tuning": {"rounds": tuning}, "evaluation": {}},
        "fedcrld": {"local_steps": 2, "starts": ["personal"], **fedcrld},
    }  # fmt: skip


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """The content of an experiment.yaml, to be changed by the test."""
    return content


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study(share="everything"): a whole valid experiment."""
    return lambda **options: parse_experiment(content(**options))


class MemoryVolumes:
    """Labelled volumes (16, 16, depth), a bright box per structure."""

    section = "training"

    def __init__(self, structures: int = 3, depths: tuple[int, ...] = (2, 3, 4), marked: Any = None) -> None:
        rng = np.random.default_rng(3)
        self.images, self.labels, self.cases = [], [], []
        for index, depth in enumerate(depths):
            label = np.zeros((16, 16, depth), dtype=np.uint8)
            for number in range(1, structures + 1):
                label[3 * number : 3 * number + 3, 4 : 8 + index] = number
            image = label + rng.normal(size=label.shape) * 0.1
            self.images.append(image.astype(np.float32)[None])
            self.labels.append(label)
            self.cases.append(
                Case(
                    image=Path(f"{index}.nii.gz"), label=Path("label.nii.gz"), patient=str(index),
                    annotated_labels=marked[index] if marked else None, key=f"key{index}",
                )
            )  # fmt: skip
        self.patients = [case.patient for case in self.cases]
        self.quarantined = {"key": "unreadable"}

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def label(self, index: int) -> np.ndarray:
        return self.labels[index]

    def points(self, index: int) -> dict[int, np.ndarray]:
        label = self.labels[index]
        return {int(value): np.argwhere(label == value).astype(np.int32) for value in np.unique(label) if value}

    def spacing(self, index: int) -> tuple[float, float, float]:
        return 1.0, 1.0, 5.0


@pytest.fixture
def volumes() -> Callable[..., Any]:
    """volumes(structures=3, depths=(2, 3, 4), marked=None)."""
    return MemoryVolumes


@pytest.fixture
def objective(study: Callable[..., Experiment]) -> Callable[..., RelocalizationObjective]:
    """objective(loss={...}): a site's objective from the study's initial weights, before its first step."""

    def make(**options: Any) -> RelocalizationObjective:
        experiment = study(**options)
        network: Any = initial_network(experiment)
        held: Any = MemoryVolumes()
        return RelocalizationObjective(
            experiment=experiment,
            network=network,
            batches=EpochBatches(volumes=held, experiment=experiment, site="site-1"),
            shared=tuple(shared_names(network, experiment)),
            device=torch.device("cpu"),
            compute=SHIPPED,
        )

    return make


@pytest.fixture
def learner(tmp_path: Path) -> Callable[..., RelocalizationLearner]:
    """learner(experiment, site="site-1"): a new process's learner on volumes in memory, as many as label its view."""

    def make(experiment: Experiment, site: str = "site-1") -> RelocalizationLearner:
        folder = tmp_path / site
        place: Any = SimpleNamespace(
            name=site, state_root=folder / "state", cache=folder / "cache", models=folder / "models", device="cpu"
        )
        made = RelocalizationLearner(experiment=experiment, site=place)
        held = MemoryVolumes(structures=len(experiment.data.labels))
        made.bench.__dict__.update(training=held, validation=held)
        return made

    return make


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    """task(experiment, shared, round=1, site="site-1", aborted=...): a task whose state outlives its process."""

    def make(
        experiment: Experiment, shared: Mapping[str, torch.Tensor], *, round: int = 0, site: str = "site-1", **more: Any
    ) -> Task:
        rounds = experiment.stages[STAGE].rounds
        root = tmp_path / site / "state"
        return Task(
            site=site,
            stage=STAGE,
            round=round,
            rounds=rounds,
            seed=experiment.seed,
            base=content_sha256(dict(shared)),
            state=SiteState(root, study="test", experiment=experiment.digest, site=site, run="run"),
            progress=Progress(site=site, stage=STAGE, round=round, rounds=rounds),
            **more,
        )

    return make


@pytest.fixture
def late() -> dict[str, Any]:
    """``data`` of a study that late enhancement with five classes takes part in."""
    return {"alternatives": [LATE]}
