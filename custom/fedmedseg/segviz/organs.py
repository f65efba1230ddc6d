"""What one site marks, and the study in its own little label map: organs 1, 2, ..., and the window they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.data.cache import Cache
from fedmedseg.data.checks import admit
from fedmedseg.data.datalist import Case, read_datalist
from fedmedseg.data.site import Site
from fedmedseg.data.volumes import Volumes, choose_patients


def organs_of(site: Site, experiment: Experiment) -> tuple[int, ...]:
    """Label numbers that any usable training case of ``site`` marks, ascending.

    Raises:
        ConfigurationError: no such role or data list.
        DataError: a damaged data list, or no training case that marks anything (reason NO_CASES).
    """
    data = experiment.data
    listed = read_datalist(site.data_list(data.role), salt=site.salt)["training"]
    valid = admit(listed, data=data, budget_mb=site.volume_budget_mb, cache=Cache(folder=site.cache)).valid
    chosen = choose_patients(
        [case.patient for case in valid], data.labelled_fraction, experiment.seed, data.labelled_patients
    )
    organs = marked((case for case in valid if case.patient in chosen), data.labels)
    if not organs:
        raise DataError(
            "section training",
            got="no usable case that marks an organ",
            expected="at least one",
            remedy="add labelled cases, or leave this study to sites that have some",
            reason=Reason.NO_CASES,
        )
    return organs


def marked(cases: Iterable[Case], labels: Mapping[int, str]) -> tuple[int, ...]:
    """The union of what ``cases`` mark, ascending; a case that names nothing marks all of ``labels``."""
    found: set[int] = set()
    for case in cases:
        found |= set(labels if case.annotated_labels is None else case.annotated_labels)
    return tuple(sorted(found))


def predicted(experiment: Experiment, organs: Sequence[int]) -> tuple[int, ...]:
    """The organs that the models of a site that marks ``organs`` predict: its own, or all under one model."""
    return tuple(organs) if experiment.wing.mode == "heads" else tuple(experiment.data.labels)


def window_of(experiment: Experiment, organs: Sequence[int]) -> tuple[float, float]:
    """HU range that a model of ``organs`` sees: from the lowest to the highest of their windows, else the study's."""
    windows = [experiment.wing.windows[experiment.data.labels[organ]] for organ in organs if experiment.wing.windows]
    if not windows:
        return experiment.data.window
    return min(low for low, _ in windows), max(high for _, high in windows)


def windowed(experiment: Experiment, organs: Sequence[int]) -> Experiment:
    """The study with the window that a model of ``organs`` sees, and its labels as they are."""
    return experiment.with_data(experiment.data.model_copy(update={"window": window_of(experiment, organs)}))


def own_study(experiment: Experiment, organs: Sequence[int]) -> Experiment:
    """The study as a model of ``organs`` sees it: they are its labels 1, 2, ..., in their order."""
    seen = windowed(experiment, organs)
    labels = {number: experiment.data.labels[organ] for number, organ in enumerate(organs, start=1)}
    return seen.with_data(seen.data.model_copy(update={"labels": labels}))


class OwnLabels:
    """Volumes of the study as a model of ``organs`` sees them: other organs are background, its own 1, 2, ....

    A case that marks none of them is left out: there is nothing to learn from or to score.

    Raises:
        DataError: no case is left (reason NO_CASES).
    """

    def __init__(self, *, volumes: Volumes, organs: Sequence[int]) -> None:
        self.volumes, self.organs = volumes, tuple(organs)
        self._table = np.zeros(256, dtype=np.uint8)
        self._table[list(self.organs)] = np.arange(1, len(self.organs) + 1)
        marks = [self._own(case.annotated_labels) for case in volumes.cases]
        self._indices = [index for index, own in enumerate(marks) if own != ()]
        self.cases = [replace(volumes.cases[index], annotated_labels=marks[index]) for index in self._indices]
        self.patients = sorted({case.patient for case in self.cases})
        self.section, self.quarantined = volumes.section, volumes.quarantined
        if not self.cases:
            raise DataError(
                f"section {volumes.section}",
                got=f"{len(volumes)} cases that mark none of this site's organs",
                expected="at least one that does",
                remedy="list cases of the organs that this site's training cases mark",
                reason=Reason.NO_CASES,
            )

    def __len__(self) -> int:
        return len(self.cases)

    def image(self, index: int) -> np.ndarray:
        """Normalised image (1, X, Y, Z)."""
        return self.volumes.image(self._indices[index])

    def label(self, index: int) -> np.ndarray | None:
        """Own label map (X, Y, Z) uint8, or None."""
        label = self.volumes.label(self._indices[index])
        return None if label is None else self._table[label]

    def native_label(self, index: int) -> np.ndarray:
        """Own label map on the file's own grid, uint8."""
        return self._table[self.volumes.native_label(self._indices[index])]

    def points(self, index: int) -> dict[int, np.ndarray]:
        """Voxels of each own organ to centre crops on, by own number."""
        points = self.volumes.points(self._indices[index])
        return {int(self._table[value]): places for value, places in points.items() if self._table[value]}

    def spacing(self, index: int) -> tuple[float, float, float]:
        """mm per voxel of the preprocessed grid."""
        return self.volumes.spacing(self._indices[index])

    def native_spacing(self, index: int) -> tuple[float, float, float]:
        """mm per voxel of the file's own grid."""
        return self.volumes.native_spacing(self._indices[index])

    def to_native(self, index: int, probabilities: torch.Tensor) -> torch.Tensor:
        """``probabilities`` on the file's own grid; see ``Volumes.to_native``."""
        return self.volumes.to_native(self._indices[index], probabilities)

    def _own(self, annotated: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if annotated is None:
            return None
        return tuple(int(self._table[organ]) for organ in self.organs if organ in annotated)


def own_labels(volumes: Volumes, organs: Sequence[int]) -> Volumes:
    """``OwnLabels`` for what expects ``Volumes``."""
    return cast(Volumes, OwnLabels(volumes=volumes, organs=organs))
