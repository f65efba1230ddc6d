"""What a site's scans can teach: of each scan the tasks that somebody marked, and those that a CNN answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedmedseg.cardiac_ct.answers import Found, label_of, maps_of
from fedmedseg.cardiac_ct.pseudo_labels import load_index, load_labels
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.state import SiteState
from fedmedseg.data.tasks import TASKS, TaskVolumes
from fedmedseg.data.volumes import Volumes, choose_patients

logger = logging.getLogger(__name__)


def inputs_of(volumes: Volumes | TaskVolumes, index: int, experiment: Experiment) -> np.ndarray:
    """What the networks see of a scan of ``volumes``; see ``stacked``."""
    return stacked(volumes.image(index), volumes.heart(index) if experiment.wing.conditioning else None, experiment)


def stacked(image: np.ndarray, heart: np.ndarray | None, experiment: Experiment) -> np.ndarray:
    """float32 (channels, X, Y, Z): the prepared image (1, X, Y, Z), the heart's structures (X, Y, Z) as numbers 0 to 7
    beside it where the study conditions on them.

    A case without them has zeros there.
    """
    if not experiment.wing.conditioning:
        return image
    beside = np.zeros(image.shape, np.float32) if heart is None else heart[None].astype(np.float32)
    return np.concatenate([image, beside])


def without_heart(volumes: Volumes | TaskVolumes, experiment: Experiment) -> dict[str, float]:
    """How many cases lack the structures that the study conditions on; nothing where it does not."""
    if not experiment.wing.conditioning:
        return {}
    return {"without_heart": float(sum(case.heart is None for case in volumes.cases))}


def annotated(volumes: Volumes, task: str, radius: float) -> TaskVolumes | None:
    """Those of ``volumes`` that annotate ``task``, or None where none does, or the study has no number for it."""
    definition = TASKS[task]
    if definition.kind == "mask" and definition.names[0] not in volumes.experiment.data.labels.values():
        return None
    try:
        return TaskVolumes(volumes=volumes, task=task, radius=radius)
    except DataError as error:
        if error.reason != Reason.NO_CASES:
            raise
        return None


@dataclass(frozen=True)
class Lesson:
    """One scan's answer to one task."""

    label: np.ndarray
    """(X, Y, Z) uint8, or heat maps (K, X, Y, Z) float32."""
    soft: torch.Tensor | None = None
    """A teacher's log-probabilities (C, X, Y, Z) float16, in place of the label."""
    confidence: float = 1.0
    real: bool = True


class Lessons:
    """The scans of ``volumes`` that teach at least one of ``tasks``.

    Args:
        volumes: scans with the labels they have.
        experiment: the study.
        tasks: what is to be learned.
        real: whether labels that somebody drew count.
        taught: where pseudo-labels lie, or None where none are to be used.
        patients: at most so many of the patients whose labels somebody drew; None: all.

    Raises:
        DataError: no scan teaches anything (reason NO_CASES).
    """

    def __init__(
        self,
        *,
        volumes: Volumes,
        experiment: Experiment,
        tasks: Sequence[str],
        real: bool = True,
        taught: SiteState | None = None,
        patients: int | None = None,
    ) -> None:
        self.volumes, self.experiment, self.tasks, self.taught = volumes, experiment, tuple(tasks), taught
        self._real: dict[str, dict[int, int]] = {}
        self._marked: dict[str, TaskVolumes] = {}
        for task in self.tasks if real else ():
            found = annotated(volumes, task, experiment.wing.radius)
            if found is not None:
                self._marked[task] = found
                chosen = choose_patients(found.patients, 1.0, experiment.seed, patients)
                self._real[task] = {
                    index: place for place, index in enumerate(found.indices) if found.cases[place].patient in chosen
                }
        kept = (load_index(taught) or {}) if taught is not None else {}
        self._kept = {
            index: frozenset(
                task for task in kept.get(case.key, ()) if task in self.tasks and index not in self._real.get(task, {})
            )
            for index, case in enumerate(volumes.cases)
        }
        self.indices = [index for index in range(len(volumes)) if self.tasks_of(index)]
        """The scans that teach anything."""
        if not self.indices:
            raise DataError(
                f"section {volumes.section}",
                got=f"{len(volumes)} scans, of which none has a label or a pseudo-label of {', '.join(self.tasks)}",
                expected="at least one",
                remedy="annotate a task in the data list, by the numbers that its labels have, or see why the CNNs' "
                "answers were refused",
                reason=Reason.NO_CASES,
            )

    def __len__(self) -> int:
        return len(self.indices)

    def tasks_of(self, index: int) -> tuple[str, ...]:
        """The tasks that scan ``index`` teaches."""
        return tuple(t for t in self.tasks if index in self._real.get(t, {}) or t in self._kept[index])

    def inputs(self, index: int) -> np.ndarray:
        """See ``inputs_of``."""
        return inputs_of(self.volumes, index, self.experiment)

    def lessons(self, index: int) -> dict[str, Lesson]:
        """What scan ``index`` teaches, by task: real labels where there are any, else a CNN's answers."""
        found = {}
        kept = self.taught if self._kept[index] else None
        labels = load_labels(kept, self.volumes.cases[index].key) if kept is not None else None
        for task in self.tasks_of(index):
            place = self._real.get(task, {}).get(index)
            if place is not None:
                found[task] = self._drawn(task, place)
            else:
                assert labels is not None
                found[task] = self._answered(index, labels.kept[task], labels.soft.get(task))
        return found

    def counts(self) -> dict[str, float]:
        """Scans that teach each task, and those of them whose answer is a CNN's: for the stage's figures."""
        each = {task: sum(task in self.tasks_of(index) for index in self.indices) for task in self.tasks}
        pseudo = sum(len(tasks) > 0 for tasks in self._kept.values())
        return {f"cases/{task}": float(number) for task, number in each.items()} | {"cases/pseudo": float(pseudo)}

    def _drawn(self, task: str, place: int) -> Lesson:
        """A label that somebody drew."""
        marked = self._marked[task]
        if not self._as_maps(task):
            label = marked.label(place)
            assert label is not None, "a case that annotates a task has its label"
            return Lesson(label=label)
        points = self.volumes.to_voxel(marked.indices[place], marked.truth(place))
        return Lesson(label=self._maps(points, marked.indices[place]))

    def _answered(self, index: int, found: Found, soft: torch.Tensor | None) -> Lesson:
        """A CNN's answer as a label."""
        shape = self._shape(index)
        if found.points is not None and self.experiment.wing.landmarks == "heatmaps":
            label = self._maps(found.points, index)
        else:
            label = label_of(found, shape, self.experiment.wing.radius)
        return Lesson(label=label, soft=soft, confidence=found.confidence, real=False)

    def _as_maps(self, task: str) -> bool:
        return self.experiment.wing.landmarks == "heatmaps" and TASKS[task].kind == "points"

    def _maps(self, points: np.ndarray, index: int) -> np.ndarray:
        return maps_of(points, self._shape(index), self.experiment.wing.sigma)

    def _shape(self, index: int) -> tuple[int, int, int]:
        x, y, z = self.volumes.image(index).shape[1:]
        return x, y, z


def weights_of(lessons: Mapping[str, Lesson], weighting: str) -> dict[str, float]:
    """What each task's loss counts: one, or as much as the CNN was sure where the answer is a CNN's."""
    sure = weighting == "confidence"
    return {task: lesson.confidence if sure and not lesson.real else 1.0 for task, lesson in lessons.items()}
