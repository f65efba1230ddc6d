"""Sites of a few phantoms, each annotating what the test says, under networks of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_cardiac_ct import SMALL

from fedmedseg.cardiac_ct import lessons as lessons_module
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, merged, read_settings, write_job

TINY: dict[str, Any] = merged(
    SMALL,
    {
        "study": "tiny",
        "data": {"crop": [64, 32, 32]},
        "cardiac_ct": {"head_steps": 1, "transfer": {"steps": 1, "cnn": "hps"}},
        "stages": {"teacher_hps": {"rounds": 1}, "teacher_ms": {"rounds": 1}, "teacher_calc": {"rounds": 1}},
    },
)


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


@dataclass
class Case:
    """What lessons ask of a case."""

    key: str
    patient: str
    heart: object = None


@dataclass
class Scans:
    """Scans of ``shape``, each filled with its own number; ``drawn`` says which have a real label of which task."""

    experiment: Any
    count: int = 3
    shape: tuple[int, int, int] = (8, 8, 8)
    drawn: Mapping[str, Mapping[int, np.ndarray]] = field(default_factory=dict)
    hearts: Mapping[int, np.ndarray] = field(default_factory=dict)
    section: str = "scans"
    quarantined: Mapping[str, str] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.full((2, 3), 4.0))
    """Where every scan that annotates points has them."""

    @property
    def cases(self) -> list[Case]:
        return [Case(f"key{index}", f"patient{index}", self.hearts.get(index)) for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        return np.full((1, *self.shape), float(index), np.float32)

    def heart(self, index: int) -> np.ndarray | None:
        return self.hearts.get(index)

    def to_voxel(self, index: int, points: np.ndarray) -> np.ndarray:
        return points

    def to_world(self, index: int, voxels: np.ndarray) -> np.ndarray:
        return voxels

    def spacing(self, index: int) -> tuple[float, float, float]:
        return 1.0, 1.0, 1.0


class Marked:
    """Those of ``volumes`` that somebody marked."""

    def __init__(self, *, volumes: Scans, task: str, radius: float) -> None:
        self.volumes, self.task = volumes, task
        self.indices: Sequence[int] = sorted(volumes.drawn.get(task, {}))
        if not self.indices:
            raise DataError("section", got=f"none of {task}", reason=Reason.NO_CASES)
        self.cases = [volumes.cases[index] for index in self.indices]
        self.patients = [case.patient for case in self.cases]

    def label(self, place: int) -> np.ndarray:
        return self.volumes.drawn[self.task][self.indices[place]]

    def truth(self, place: int) -> np.ndarray:
        return self.volumes.points


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> type[Scans]:
    """Scans of a few voxels, which lessons then read in place of files."""
    monkeypatch.setattr(lessons_module, "TaskVolumes", Marked)
    return Scans
