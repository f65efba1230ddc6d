"""Pictures of the test for a site's own people: its best, its median and its worst case, with what was found in it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmedseg.cardiac_ct.answers import found_in
from fedmedseg.cardiac_ct.evaluation import CaseResult, Predict
from fedmedseg.cardiac_ct.lessons import inputs_of
from fedmedseg.cardiac_ct.models import CNN, TRANSFORMER
from fedmedseg.core.config import Experiment
from fedmedseg.data.tasks import TASKS, TaskVolumes
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.points import FAR_MM
from fedmedseg.segmentation.overlay import TRUTH, busiest_slice, overlay_png
from fedmedseg.segmentation.pictures import chosen, place_pictures


def standing(result: CaseResult) -> float:
    """How well a model did on a case, 0 to 1: the mean over masks (their Dice) and points (10 / (10 + d) at d mm).

    A point that was not found counts 0. nan where there is nothing to judge: a structure that neither truth nor model
    has says nothing.
    """
    dice = [one.dice for one in result.structures.values() if math.isfinite(one.dice)]
    near = [FAR_MM / (FAR_MM + distance) for distance in result.distances.values()]
    return math.fsum([*dice, *near]) / (len(dice) + len(near)) if dice or near else math.nan


def judge(models: Collection[str]) -> str:
    """By which model cases are chosen: the transformer, or without one the CNNs."""
    return TRANSFORMER if TRANSFORMER in models else CNN


def write_pictures(
    folder: Path,
    results: Mapping[str, Sequence[CaseResult]],
    models: Mapping[str, Predict],
    *,
    volumes: Volumes,
    marked: Mapping[str, TaskVolumes],
    experiment: Experiment,
) -> dict[str, tuple[int, bytes]]:
    """Draw the cases that the judging model did worst, middling and best on (see ``draw``): the case's number among
    those tested, and the PNG, by the picture's place.

    ``results`` are in the order in which ``score_cases`` went through the annotated cases. A site may have no model
    where nothing is shared: it gets no picture.
    """
    tested = tested_cases(marked)
    places = chosen([standing(one) for one in results[judge(models)]]) if models else {}
    drawn = {
        place: draw(models, volumes=volumes, marked=marked, index=tested[number], experiment=experiment)
        for place, number in places.items()
    }
    place_pictures(folder, drawn)
    return {place: (number, drawn[place]) for place, number in places.items()}


def tested_cases(marked: Mapping[str, TaskVolumes]) -> list[int]:
    """Indices of the volumes that annotate anything, in the order in which they are scored."""
    return sorted({index for one in marked.values() for index in one.indices})


def draw(
    models: Mapping[str, Predict],
    *,
    volumes: Volumes,
    marked: Mapping[str, TaskVolumes],
    index: int,
    experiment: Experiment,
) -> bytes:
    """One axial slice of case ``index`` as PNG, with outlines of masks and all points projected onto it.

    The slice has most of what the truth marks, or lies in the middle of its points. What the case does not annotate is
    not drawn, whatever a model finds.
    """
    image = volumes.image(index)[0]
    places = {task: one.indices.index(index) for task, one in marked.items() if index in one.indices}
    labels = {TRUTH: np.zeros(image.shape, np.uint8)}
    true = [
        volumes.to_voxel(index, marked[task].truth(place))
        for task, place in places.items()
        if TASKS[task].kind == "points"
    ]
    points = {TRUTH: _together(true)}
    for number, (task, place) in enumerate(_masks(places).items()):
        label = marked[task].label(place)
        assert label is not None, "a case that annotates a mask has it"
        _lay(labels[TRUTH], label, first=number)
    inputs = inputs_of(volumes, index, experiment)
    for model, predict in models.items():
        found = {
            task: found_in(one, task, experiment.wing.landmarks) for task, one in predict(inputs, list(places)).items()
        }
        labels[model] = np.zeros(image.shape, np.uint8)
        for number, task in enumerate(_masks(places)):
            if task in found and (mask := found[task].mask) is not None:
                _lay(labels[model], mask, first=number)
        points[model] = _together([one.points for one in found.values() if one.points is not None])
    x, y, _ = volumes.spacing(index)
    slice_ = _slice(labels[TRUTH], points[TRUTH])
    outlines = {name: label[:, :, slice_] for name, label in labels.items() if name != TRUTH}
    return overlay_png(
        image[:, :, slice_],
        labels[TRUTH][:, :, slice_],
        outlines,
        spacing=(x, y),
        points={name: rows[:, :2] for name, rows in points.items()},
    )


def _masks(places: Mapping[str, int]) -> dict[str, int]:
    return {task: place for task, place in places.items() if TASKS[task].kind != "points"}


def _lay(labels: NDArray[np.uint8], mask: NDArray[np.integer], *, first: int) -> None:
    """Lay a task's classes over ``labels``, under numbers that no other task has."""
    most = max(task.classes for task in TASKS.values())
    labels[mask > 0] = first * most + mask[mask > 0]


def _together(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros((0, 3)), *rows])


def _slice(label: NDArray[np.integer], points: NDArray[np.float64]) -> int:
    there = points[~np.isnan(points).any(axis=1)]
    if (label > 0).any() or not len(there):
        return busiest_slice(label)
    return int(np.clip(round(float(there[:, 2].mean())), 0, label.shape[2] - 1))
