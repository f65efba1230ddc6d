"""Batches of labelled crops, each with the structures its case marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.training_settings import SegmentationSection
from fedmedseg.data.augmentation import augmented
from fedmedseg.data.datalist import Case
from fedmedseg.data.sampling import labelled_crop
from fedmedseg.data.volumes import Volumes


class Part:
    """Some of the volumes of ``volumes``, read through it; nothing is copied."""

    def __init__(self, *, volumes: Volumes, indices: Sequence[int]) -> None:
        self.volumes = volumes
        self.indices = tuple(indices)
        self.cases: list[Case] = [volumes.cases[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        """Normalised image (1, X, Y, Z)."""
        return self.volumes.image(self.indices[index])

    def label(self, index: int) -> np.ndarray | None:
        """Label map (X, Y, Z), or None."""
        return self.volumes.label(self.indices[index])

    def points(self, index: int) -> dict[int, np.ndarray]:
        """Voxels of each structure to centre crops on."""
        return self.volumes.points(self.indices[index])


class LabelledBatches:
    """Draws ``segmentation.batch`` crops at a time, every volume equally likely."""

    def __init__(self, *, volumes: Volumes, data: DataSection, segmentation: SegmentationSection) -> None:
        self.volumes = volumes
        self.data = data
        self.segmentation = segmentation
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for index, case in enumerate(volumes.cases):
            marked = None if case.annotated_labels is None else tuple(sorted(case.annotated_labels))
            groups.setdefault(marked, []).append(index)
        self._marked = list(groups)
        # crops are drawn from cases that mark the same structures, so that each crop's structures are known
        self._parts = [cast(Volumes, Part(volumes=volumes, indices=indices)) for indices in groups.values()]
        self._shares = np.array([len(part) for part in self._parts]) / len(volumes)

    def draw(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, ...] | None]]:
        """Images (B, 1, *crop) float32, labels (B, 1, *crop) int64 and each item's marked label numbers."""
        images, labels, marked = [], [], []
        for _ in range(self.segmentation.batch):
            group = int(rng.choice(len(self._parts), p=self._shares))
            image, label = labelled_crop(
                self._parts[group], rng, self.data, foreground_share=self.segmentation.foreground_share
            )
            if self.segmentation.augment:
                image, label = augmented(
                    image, label, rng, kind=self.segmentation.augmentation, modality=self.data.modality
                )
            images.append(image)
            labels.append(label)
            marked.append(self._marked[group])
        return torch.stack(images), torch.stack(labels), marked
