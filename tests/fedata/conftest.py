"""A small FedATA study, volumes in memory and a site of temporary folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.fedata.learner import MaskedDistillationLearner

SWIN = {"name": "swin_unetr", "feature_size": 12, "window": 4, "depths": [1, 1, 1, 2]}
UNETR = {"name": "unetr", "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "heads": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def content(network: str = "unetr", crop: tuple[int, ...] = (32, 32), rounds: int = 3, **fedata: Any) -> dict[str, Any]:
    return {
        "system": "fedata",
        "study": "test",
        "data": {
            "role": "cmr",
            "modality": "mr",
            "spatial_dims": len(crop),
            "labels": {1: "left", 2: "right"},
            "crop": list(crop),
        },
        "network": SWIN if network == "swin_unetr" else UNETR,
        "segmentation": {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
        "stages": {"pretraining": {"rounds": rounds}, "fine_tuning": {}, "evaluation": {}},
        "fedata": {"local_steps": 4, "optimizer": {"learning_rate": 1e-3}, **fedata},
    }


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """The content of an experiment.yaml, to be changed by the test."""
    return content


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study("unetr", (32, 32), kappa=0.0): a whole valid experiment."""
    return lambda *args, **kwargs: parse_experiment(content(*args, **kwargs))


class MemoryVolumes:
    """Six volumes of smooth blobs, all tissue; every read is counted."""

    def __init__(self, count: int = 6) -> None:
        rng = np.random.default_rng(3)
        coarse = rng.normal(size=(count, 10, 10, 10)).astype(np.float32)
        self.arrays = coarse.repeat(4, axis=1).repeat(4, axis=2).repeat(4, axis=3)
        self.arrays = np.concatenate([self.arrays, self.arrays[:, ::-1]], axis=1)
        self.arrays = np.concatenate([self.arrays, self.arrays[:, :, ::-1]], axis=2)
        self.reads: list[int] = []
        self.quarantined = {"key": "unreadable"}

    def __len__(self) -> int:
        return len(self.arrays)

    def image(self, index: int) -> np.ndarray:
        self.reads.append(index)
        return self.arrays[index][None]

    def tissue(self, index: int) -> float:
        return -100.0

    def slice_tissue(self, index: int) -> np.ndarray:
        return np.ones(self.arrays.shape[-1])


@pytest.fixture
def volumes() -> MemoryVolumes:
    return MemoryVolumes()


@pytest.fixture
def learner(tmp_path: Path, volumes: MemoryVolumes) -> Callable[[Experiment], MaskedDistillationLearner]:
    """learner(experiment): a new process's learner on the volumes in memory."""

    def make(experiment: Experiment) -> MaskedDistillationLearner:
        made = MaskedDistillationLearner(
            experiment=experiment,
            site=SimpleNamespace(state_root=tmp_path / "state", cache=tmp_path / "cache", device="cpu"),
        )
        made.__dict__["volumes"] = volumes
        return made

    return make


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    """task(experiment, shared, round=1, site="site-1", aborted=...): a task whose state outlives its process."""

    def make(
        experiment: Experiment,
        shared: dict[str, torch.Tensor],
        *,
        round: int = 0,
        site: str = "site-1",
        **more: Any,
    ) -> Task:
        rounds = experiment.stages["pretraining"].rounds
        return Task(
            site=site,
            stage="pretraining",
            round=round,
            rounds=rounds,
            seed=experiment.seed,
            base=content_sha256(shared),
            state=SiteState(tmp_path / "state", study="test", experiment=experiment.digest, site=site, run="run"),
            progress=Progress(site=site, stage="pretraining", round=round, rounds=rounds),
            **more,
        )

    return make


@pytest.fixture
def moved() -> Callable[..., dict[str, torch.Tensor]]:
    """moved(tensors, scale): the same tensors a little further on, as another site's training would leave them."""

    def make(tensors: dict[str, torch.Tensor], scale: float = 0.05, seed: int = 5) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: tensor + scale * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }

    return make
