"""What a step is made on: whole hearts for a CNN, patches of one scan for the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedmedseg.cardiac_ct.inference import Edges, centred
from fedmedseg.cardiac_ct.lessons import Lesson, Lessons, weights_of


@dataclass(frozen=True)
class Batch:
    """Inputs (B, channels, *edges) and, per task, what they teach."""

    inputs: torch.Tensor
    targets: Mapping[str, torch.Tensor]
    """(B, *edges) int64, or heat maps (B, K, *edges) float32."""
    soft: Mapping[str, torch.Tensor]
    """(B, C, *edges) float32 log-probabilities."""
    weights: Mapping[str, float]


class WholeHearts:
    """Draws whole volumes, every case equally likely: its middle, cut or padded to ``size``."""

    def __init__(self, *, lessons: Lessons, task: str, size: Edges, batch: int) -> None:
        self.lessons, self.task, self.size, self.batch = lessons, task, size, batch

    def draw(self, rng: np.random.Generator) -> Batch:
        """``batch`` volumes with the task's labels."""
        inputs, labels = [], []
        for _ in range(self.batch):
            index = self.lessons.indices[int(rng.integers(len(self.lessons)))]
            inputs.append(torch.from_numpy(centred(self.lessons.inputs(index), self.size)))
            labels.append(_target(centred(self.lessons.lessons(index)[self.task].label, self.size)))
        return Batch(torch.stack(inputs), {self.task: torch.stack(labels)}, {}, {self.task: 1.0})


class Patches:
    """Draws ``batch`` patches of one scan, every scan equally likely; its labels are cut at the same places.

    ``foreground_share`` of the patches (published: none) is centred, as far as the border allows, on a voxel that one
    of the scan's tasks marks.
    """

    def __init__(
        self, *, lessons: Lessons, crop: Edges, batch: int, foreground_share: float = 0.0, weighting: str = "none"
    ) -> None:
        self.lessons, self.crop, self.batch = lessons, crop, batch
        self.foreground_share, self.weighting = foreground_share, weighting

    def draw(self, rng: np.random.Generator) -> Batch:
        """Patches of one scan with whatever it teaches."""
        index = self.lessons.indices[int(rng.integers(len(self.lessons)))]
        inputs, lessons = self.lessons.inputs(index), self.lessons.lessons(index)
        boxes = [self._box(inputs.shape[1:], lessons, rng) for _ in range(self.batch)]
        targets, soft = {}, {}
        for task, lesson in lessons.items():
            targets[task] = torch.stack([_target(lesson.label[..., *box]) for box in boxes])
            if lesson.soft is not None:
                soft[task] = torch.stack([lesson.soft[..., *box].float() for box in boxes])
        cut = [torch.from_numpy(np.array(inputs[..., *box])) for box in boxes]
        return Batch(torch.stack(cut), targets, soft, weights_of(lessons, self.weighting))

    def _box(self, shape: tuple[int, ...], lessons: Mapping[str, Lesson], rng: np.random.Generator) -> tuple[Any, ...]:
        room = [edge - wanted for edge, wanted in zip(shape, self.crop, strict=True)]
        corner = [int(rng.integers(space + 1)) for space in room]
        if rng.random() < self.foreground_share:
            label = lessons[list(lessons)[int(rng.integers(len(lessons)))]].label
            marked = np.argwhere(label > 0.5 if label.ndim == 4 else label > 0)
            if len(marked):
                centre = marked[int(rng.integers(len(marked)))][-3:]
                corner = [
                    min(max(int(place) - edge // 2, 0), space)
                    for place, edge, space in zip(centre, self.crop, room, strict=True)
                ]
        return tuple(slice(start, start + edge) for start, edge in zip(corner, self.crop, strict=True))


def _target(label: np.ndarray) -> torch.Tensor:
    """A label as the losses take it: whole numbers as int64, heat maps as they are."""
    if label.dtype == np.uint8:
        return torch.from_numpy(label.astype(np.int64))
    return torch.from_numpy(np.ascontiguousarray(label))
