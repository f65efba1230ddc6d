"""A small FCL study, volumes in memory and a site of temporary folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.exchange import Features
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.data.stacks import Stack
from fedmedseg.fcl.config import STAGE
from fedmedseg.fcl.learner import ContrastiveLearner
from fedmedseg.fcl.objective import ContrastiveObjective


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def content(
    *, rounds: int = 3, network: Mapping[str, Any] = {}, sections: Mapping[str, Any] = {}, **fcl: Any
) -> dict[str, Any]:
    return {
        "system": "fcl",
        "study": "test",
        "data": {
            "role": "cmr",
            "modality": "mr",
            "spatial_dims": 2,
            "labels": {1: "left", 2: "wall"},
            "crop": [16, 16],
        },
        "network": {"name": "basic_unet", "features": [8, 8, 8, 8, 8], "norm": "group", **network},
        "segmentation": {"steps": 2, "batch": 2, "validate_every": 2, "optimizer": {"learning_rate": 1e-3}},
        "stages": {STAGE: {"rounds": rounds}, "fine_tuning": {}, "evaluation": {}},
        "fcl": {
            **({} if "local_epochs" in fcl else {"local_steps": 2}),
            "volumes_per_step": 2,
            "warmup_rounds": 1,
            "projector": {"out": 4},
            "bank": {"size": 6},
            **fcl,
        },
        **sections,
    }


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """The content of an experiment.yaml, to be changed by the test."""
    return content


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study(key_sync="keep"): a whole valid experiment."""
    return lambda **options: parse_experiment(content(**options))


class MemoryVolumes:
    """Images (1, 20, 20, depth) of noise around a bright disc that shrinks from slice to slice."""

    section = "unlabeled"

    def __init__(self, depths: tuple[int, ...] = (5, 4, 6), seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        x, y = np.mgrid[:20, :20] - 9.5
        self.images = []
        for depth in depths:
            radius = np.linspace(8, 3, depth)
            disc = (x[..., None] ** 2 + y[..., None] ** 2 < radius**2) * 2.0
            self.images.append((disc + rng.normal(size=disc.shape) * 0.2).astype(np.float32)[None])
        self.quarantined = {"key": "unreadable"}

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def tissue(self, index: int) -> float:
        return 1.0

    def slice_tissue(self, index: int) -> np.ndarray:
        return (self.images[index][0] > 1.0).mean(axis=(0, 1))

    def stack(self, index: int) -> Stack:
        return Stack(slices=self.images[index].shape[3], thickness=10.0, normal=(0.0, 0.0, 1.0))


@pytest.fixture
def volumes() -> Callable[..., Any]:
    """volumes(depths=(5, 4, 6), seed=3)."""
    return MemoryVolumes


@pytest.fixture
def objective(study: Callable[..., Experiment]) -> Callable[..., ContrastiveObjective]:
    """objective(key_sync="keep"): a site's objective before its first round."""

    def make(*, held: Any = None, **options: Any) -> ContrastiveObjective:
        # the projector's first weights come from the global generator
        torch.manual_seed(4)
        return ContrastiveObjective(
            experiment=study(**options), volumes=held or MemoryVolumes(), device=torch.device("cpu")
        )

    return make


@pytest.fixture
def learner(tmp_path: Path) -> Callable[..., ContrastiveLearner]:
    """learner(experiment, site="site-1", privacy=None): a new process's learner on volumes in memory."""

    def make(experiment: Experiment, site: str = "site-1", *, simulated: bool = True, privacy: Any = None) -> Any:
        folder = tmp_path / site
        place: Any = SimpleNamespace(
            name=site,
            state_root=folder / "state",
            cache=folder / "cache",
            models=folder / "models",
            device="cpu",
            approval="none",
            simulated=simulated,
            privacy=privacy,
        )
        made = ContrastiveLearner(experiment=experiment, site=place)
        made.__dict__["volumes"] = MemoryVolumes(seed=sum(site.encode()))
        return made

    return make


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    """task(experiment, shared, round=1, site="site-1", received=...): a task whose state outlives its process."""

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
def others() -> Callable[..., Features]:
    """others(rows=5, width=4, parts=4): features that other sites gave."""

    def make(rows: int = 5, width: int = 4, parts: int = 4, seed: int = 9) -> Features:
        drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
        return Features(
            vectors=torch.nn.functional.normalize(drawn, dim=1),
            parts=(torch.arange(rows) % parts).to(torch.uint8),
        )

    return make
