"""Which of a teacher's answers are good enough to learn from: all points found, plausible distances and sizes.

Published is the first rule alone: a scan counts where five and two points were found. The distances, the size of a
calcification and the least confidence are an option of ours, wide enough for every adult heart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmedseg.data.tasks import TASKS

HINGES, OSTIA = slice(0, 3), slice(3, 5)
"""Where TASKS["hps"] lists the three hinge points and the two ostia."""


@dataclass(frozen=True)
class Answer:
    """A teacher's answer for one scan."""

    points: np.ndarray | None
    """(K, 3) mm, a row of nan where a point was not found; None of a task that marks voxels."""
    volume: float
    """mm3 of what it marked; 0 of a task of points."""
    confidence: float
    """0..1: mean probability of what it marked."""


@dataclass(frozen=True)
class Limits:
    """mm and mm3 between which an answer is plausible; None: not asked."""

    hinge_points: tuple[float, float] | None = None
    """Between any two hinge points."""
    ostia: tuple[float, float] | None = None
    """From an ostium to the nearest hinge point."""
    septum: tuple[float, float] | None = None
    """Between the ends of the membranous septum."""
    calcium: tuple[float, float] | None = None
    """Volume of the calcification."""
    least_confidence: float = 0.0


def problem(task: str, answer: Answer, limits: Limits) -> str | None:
    """Why an answer cannot be learned from, in a few words that say nothing of a patient; None where it can."""
    if answer.points is not None and np.isnan(answer.points).any():
        return "points missing"
    if answer.confidence < limits.least_confidence:
        return "low confidence"
    if task == "hps":
        return _implausible(answer, limits)
    if task == "ms" and limits.septum is not None and not _within(_pairs(answer.points), limits.septum):
        return "implausible septum"
    if task == "calc" and limits.calcium is not None and not _within([answer.volume], limits.calcium):
        return "implausible calcification"
    return None


def passed(answers: Mapping[str, Answer], limits: Limits, *, keep: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The tasks whose answers are kept, and why others are not.

    ``keep``: ``scan`` keeps a scan where every task of points passes, as published, and of the tasks that mark voxels
    those that do; ``task`` judges each for itself.
    """
    found = {task: problem(task, answer, limits) for task, answer in answers.items()}
    reasons = {task: reason for task, reason in found.items() if reason is not None}
    if keep == "scan" and any(TASKS[task].kind == "points" for task in reasons):
        return (), {task: reasons.get(task, "another task's points failed") for task in answers}
    return tuple(task for task in answers if task not in reasons), reasons


def _implausible(answer: Answer, limits: Limits) -> str | None:
    assert answer.points is not None
    hinges, ostia = answer.points[HINGES], answer.points[OSTIA]
    if limits.hinge_points is not None and not _within(_pairs(hinges), limits.hinge_points):
        return "implausible hinge points"
    nearest = np.linalg.norm(ostia[:, None] - hinges[None], axis=2).min(axis=1)
    if limits.ostia is not None and not _within(nearest, limits.ostia):
        return "implausible ostia"
    return None


def _pairs(points: np.ndarray | None) -> list[float]:
    """Distances between any two of the points."""
    assert points is not None
    count = len(points)
    return [float(np.linalg.norm(points[i] - points[j])) for i in range(count) for j in range(i + 1, count)]


def _within(values: Sequence[float] | np.ndarray, limits: tuple[float, float]) -> bool:
    return all(limits[0] <= value <= limits[1] for value in values)
