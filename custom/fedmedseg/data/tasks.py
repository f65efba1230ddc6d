"""The tasks of cardiac CT: what each consists of, which of them a case annotates, and a site's cases of one task.

Tölle et al., "Real world federated learning with a knowledge distilled transformer for cardiac CT imaging", npj Digital
Medicine 2025 [0]; names and their order as in the authors' train_federated.py [1], where NCC is called ACC.

- [0]: https://arxiv.org/abs/2407.07557
- [1]: https://github.com/Cardio-AI/fed-foundation-model-cardiac-ct
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, DataError, Reason, choose
from fedmedseg.data.cache import Cache
from fedmedseg.data.checks import admit
from fedmedseg.data.datalist import Case, read_datalist
from fedmedseg.data.landmarks import as_rows, read_landmarks
from fedmedseg.data.preprocessing import label_points
from fedmedseg.data.site import Site
from fedmedseg.data.spheres import RADIUS, draw_spheres
from fedmedseg.data.volumes import Section, Volumes, listed


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to find. ``names`` are its foreground classes 1, 2, ... in their order."""

    key: str
    kind: Literal["points", "mask", "structures"]
    names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.names) + 1


TASKS: dict[str, Task] = {
    task.key: task
    for task in (
        Task(key="hps", kind="points", names=("RCC", "LCC", "NCC", "RCA", "LCA")),
        Task(key="ms", kind="points", names=("MS1", "MS2")),
        Task(key="calc", kind="mask", names=("calcification",)),
        Task(key="coronaries", kind="mask", names=("coronaries",)),
        Task(key="heart", kind="structures", names=("Myo", "LA", "LV", "RA", "RV", "Aorta", "PA")),
    )
}
"""Hinge points of the three cusps and the two coronary ostia; upper and lower end of the membranous septum;
calcification of the aortic valve; coronary arteries; structures of the heart."""


def task_of(key: str) -> Task:
    """The task called ``key``.

    Raises:
        ConfigurationError: names the nearest one.
    """
    if key not in TASKS:
        raise ConfigurationError(
            "task",
            got=repr(key),
            expected=f"one of {', '.join(TASKS)}",
            remedy=choose(key, TASKS),
        )
    return TASKS[key]


def tasks_of(case: Case, labels: Mapping[int, str]) -> tuple[str, ...]:
    """Keys of the tasks that ``case`` annotates, in the order of ``TASKS``.

    Points: its landmark file has every name of the task (with no coordinates where a point is not in the scan); some of
    them alone are no annotation, for the missing ones would be learnt as background. A mask: it has a label, and its
    ``annotated_labels`` hold, or leave open, the number that ``labels`` gives that name. The heart: it has that file.

    Raises:
        CaseRejected: a landmark file that cannot be read.
    """
    placed = set(read_landmarks(case.landmarks)) if case.landmarks is not None else set()
    return tuple(key for key, task in TASKS.items() if _annotates(case, task, labels, placed))


def counts_by_task(site: Site, experiment: Experiment, section: Section = "training") -> dict[str, int]:
    """How many usable cases of a section annotate each task, 0 where none does.

    Raises:
        ConfigurationError: no such role or data list.
        DataError: a damaged data list.
    """
    data = experiment.data
    cases = listed(read_datalist(site.data_list(data.role), salt=site.salt), section)
    valid = admit(cases, data=data, budget_mb=site.volume_budget_mb, cache=Cache(folder=site.cache)).valid
    found = [tasks_of(case, data.labels) for case in valid]
    return {key: sum(key in tasks for tasks in found) for key in TASKS}


class TaskVolumes:
    """The cases of ``volumes`` that annotate one task, with that task's labels 1, 2, ... and nothing else.

    Args:
        radius: Of the sphere that stands for a point, in voxels of the study's grid.

    Raises:
        ConfigurationError: no such task, or a mask whose name is not in ``data.labels``.
        DataError: no case annotates it (reason NO_CASES).
    """

    def __init__(self, *, volumes: Volumes, task: str, radius: float = RADIUS) -> None:
        self.volumes, self.task, self.radius = volumes, task, radius
        self.definition = task_of(task)
        labels = volumes.experiment.data.labels
        if self.definition.kind == "mask" and self.definition.names[0] not in labels.values():
            raise ConfigurationError(
                "data.labels",
                got=labels,
                expected=f"a number for {self.definition.names[0]!r}, which is what task {task!r} marks",
                remedy="add it to data.labels, or leave the task out",
            )
        numbers = {name: number for number, name in labels.items()}
        self._number = numbers.get(self.definition.names[0])
        self.indices = tuple(i for i, case in enumerate(volumes.cases) if task in tasks_of(case, labels))
        self.cases = [volumes.cases[index] for index in self.indices]
        self.patients = sorted({case.patient for case in self.cases})
        self.section, self.quarantined = volumes.section, volumes.quarantined
        if not self.cases:
            raise DataError(
                f"section {volumes.section}",
                got=f"none of {len(volumes)} cases with annotations of task {task!r}",
                expected=f"at least one that has {_needs(self.definition)}",
                remedy="add such cases, or leave this task to sites that have some",
                reason=Reason.NO_CASES,
            )
        self._drawn = lru_cache(maxsize=64)(self._draw)

    def __len__(self) -> int:
        return len(self.cases)

    def image(self, index: int) -> np.ndarray:
        """Normalised image (1, X, Y, Z)."""
        return self.volumes.image(self.indices[index])

    def heart(self, index: int) -> np.ndarray | None:
        """Structures of the heart on the prepared grid, uint8 (X, Y, Z); None without that file."""
        return self.volumes.heart(self.indices[index])

    def label(self, index: int) -> np.ndarray | None:
        """The task's label map on the prepared grid, uint8 (X, Y, Z)."""
        return self._drawn(index)[0]

    def points(self, index: int) -> dict[int, np.ndarray]:
        """Voxels of each class present to centre crops on, int32 (N, 3)."""
        return self._drawn(index)[1]

    def truth(self, index: int) -> np.ndarray:
        """Points in mm (K, 3) of the world, R, A, S, as the file has them; a row of nan is a point not in the scan."""
        return as_rows(self.volumes.landmarks(self.indices[index]), self.definition.names)

    def native_label(self, index: int) -> np.ndarray:
        """The task's mask (0, 1), or the heart's structures, on the image file's own grid, uint8. Not for points."""
        if self.definition.kind == "structures":
            return self.volumes.native_heart(self.indices[index])
        return (self.volumes.native_label(self.indices[index]) == self._number).astype(np.uint8)

    def spacing(self, index: int) -> tuple[float, float, float]:
        """mm per voxel of the prepared grid."""
        return self.volumes.spacing(self.indices[index])

    def native_spacing(self, index: int) -> tuple[float, float, float]:
        """mm per voxel of the file's own grid."""
        return self.volumes.native_spacing(self.indices[index])

    def to_native(self, index: int, probabilities: torch.Tensor) -> torch.Tensor:
        """``probabilities`` on the file's own grid; see ``Volumes.to_native``."""
        return self.volumes.to_native(self.indices[index], probabilities)

    def to_world(self, index: int, voxels: np.ndarray) -> np.ndarray:
        """Voxels of the prepared grid in mm; see ``Volumes.to_world``."""
        return self.volumes.to_world(self.indices[index], voxels)

    def _draw(self, index: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        place = self.indices[index]
        if self.definition.kind == "points":
            voxels = self.volumes.to_voxel(place, self.truth(index))
            label = draw_spheres(voxels, self.volumes.image(place).shape[1:], radius=self.radius)
        elif self.definition.kind == "mask":
            whole = self.volumes.label(place)
            assert whole is not None, "tasks_of names a mask only where there is a label"
            label = (whole == self._number).astype(np.uint8)
        else:
            heart = self.volumes.heart(place)
            assert heart is not None, "tasks_of names the heart only where there is that file"
            label = np.asarray(heart)
        points, rows = label_points(label)
        return label, {value: points[start:stop] for value, start, stop in rows}


def _annotates(case: Case, task: Task, labels: Mapping[int, str], placed: set[str]) -> bool:
    if task.kind == "points":
        return set(task.names) <= placed
    if task.kind == "structures":
        return case.heart is not None
    numbers = {number for number, name in labels.items() if name == task.names[0]}
    marked = set(labels) if case.annotated_labels is None else set(case.annotated_labels)
    return case.label is not None and bool(numbers & marked)


def _needs(task: Task) -> str:
    if task.kind == "points":
        return f"the landmarks {', '.join(task.names)}"
    return f"a label map of {task.names[0]}" if task.kind == "mask" else "the file 'heart'"
