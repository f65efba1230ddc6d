"""Labelled crops in epochs: every volume once, in an order that is drawn anew for each."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.seeding import generator
from fedmedseg.data.augmentation import augmented
from fedmedseg.data.datalist import Case
from fedmedseg.data.sampling import labelled_crop
from fedmedseg.data.volumes import Volumes
from fedmedseg.segmentation.batches import Part


class EpochBatches:
    """Draws ``segmentation.batch`` crops a step from the cases that mark every structure.

    The losses compare whole probability maps, so a case that marks only some structures cannot be used; ``left_out``
    counts those.

    Raises:
        DataError: no case marks every structure (reason NO_CASES).
    """

    def __init__(self, *, volumes: Volumes, experiment: Experiment, site: str) -> None:
        self.experiment, self.site = experiment, site
        whole = [index for index, case in enumerate(volumes.cases) if _marks_all(case, experiment)]
        self.left_out = len(volumes) - len(whole)
        if not whole:
            raise DataError(
                "annotated_labels",
                got=f"{self.left_out} cases that mark only some structures",
                expected="at least one training case that marks every structure of data.labels",
                remedy="correct annotated_labels in the data list, or complete the labels",
                reason=Reason.NO_CASES,
            )
        self._parts = [cast(Volumes, Part(volumes=volumes, indices=(index,))) for index in whole]

    def __len__(self) -> int:
        return len(self._parts)

    def volume(self, position: int) -> int:
        """Which volume comes at ``position``, counted over all rounds."""
        epoch, place = divmod(position, len(self))
        order = generator(self.experiment.seed, self.site, "epoch", epoch).permutation(len(self))
        return int(order[place])

    def draw(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 1, *crop) float32 and labels (B, 1, *crop) int64 of one step, counted over all rounds."""
        section, data = self.experiment.segmentation, self.experiment.data
        images, labels = [], []
        for item in range(section.batch):
            part = self._parts[self.volume(step * section.batch + item)]
            image, label = labelled_crop(part, rng, data, foreground_share=section.foreground_share)
            if section.augment:
                image, label = augmented(image, label, rng, kind=section.augmentation, modality=data.modality)
            images.append(image)
            labels.append(label)
        return torch.stack(images), torch.stack(labels)


def _marks_all(case: Case, experiment: Experiment) -> bool:
    return case.annotated_labels is None or set(case.annotated_labels) >= set(experiment.data.labels)
