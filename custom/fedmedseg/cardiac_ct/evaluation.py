"""The one test of a site: points in mm, masks by Dice, calcium by volume and Agatston score; no case is dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmedseg.cardiac_ct.answers import found_in
from fedmedseg.cardiac_ct.lessons import inputs_of
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.config import Experiment
from fedmedseg.core.training import Aborted
from fedmedseg.data.datalist import case_key
from fedmedseg.data.tasks import TASKS, TaskVolumes
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.calcium import calcium_score
from fedmedseg.reporting.metrics import CaseScore, StructureScore, score_structures
from fedmedseg.reporting.points import PointCase, score_points, summarise_points
from fedmedseg.segmentation.inference import label_map
from fedmedseg.segmentation.scores import metrics_of

FORMAT = 1
Predict = Callable[[np.ndarray, Sequence[str]], Mapping[str, torch.Tensor]]
"""From inputs (channels, X, Y, Z) and the tasks that are asked for to probabilities (C, X, Y, Z) by task."""


@dataclass(frozen=True)
class CaseResult:
    """What one model made of one test case. Keys are salted hashes."""

    key: str
    patient: str
    distances: Mapping[str, float] = field(default_factory=dict)
    """mm per point that the truth holds; infinity where the model found none."""
    invented: int = 0
    """Points that the model found and the scan does not hold."""
    structures: Mapping[str, StructureScore] = field(default_factory=dict)
    calcium: Mapping[str, float] = field(default_factory=dict)
    """``volume`` (mm3) and ``agatston`` of the model, ``true_volume`` and ``true_agatston`` of the truth."""


def score_cases(
    predict: Predict,
    *,
    volumes: Volumes,
    marked: Mapping[str, TaskVolumes],
    experiment: Experiment,
    salt: str,
    aborted: Callable[[], bool] = lambda: False,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> list[CaseResult]:
    """Score every case of ``volumes`` on those of the tasks in ``marked`` that it annotates.

    Points are compared in the world's mm, masks on each file's own grid.

    Raises:
        Aborted: ``aborted()`` became true between two cases.
    """
    places = {task: {index: place for place, index in enumerate(one.indices)} for task, one in marked.items()}
    cases = [index for index in range(len(volumes)) if any(index in place for place in places.values())]
    results = []
    for done, index in enumerate(cases, start=1):
        if aborted():
            raise Aborted
        tasks = [task for task in marked if index in places[task]]
        found = predict(inputs_of(volumes, index, experiment), tasks)
        case = volumes.cases[index]
        patient = case_key(salt, case.patient)
        distances: dict[str, float] = {}
        invented = 0
        structures: dict[str, StructureScore] = {}
        calcium: dict[str, float] = {}
        for task in found:
            if TASKS[task].kind == "points":
                points = found_in(found[task], task, experiment.wing.landmarks).points
                assert points is not None
                one, place = marked[task], places[task][index]
                scored = score_points(
                    one.to_world(place, points),
                    one.truth(place),
                    names=TASKS[task].names,
                    key=case.key,
                    patient=patient,
                )
                distances |= scored.distances
                invented += scored.invented
                continue
            scores, predicted, true = _structures(found[task], task, marked[task], places[task][index])
            structures |= scores
            if task == "calc":
                calcium = _calcium(volumes, index, predicted, true)
        results.append(
            CaseResult(
                key=case.key,
                patient=patient,
                distances=distances,
                invented=invented,
                structures=structures,
                calcium=calcium,
            )
        )
        on_case(done, len(cases))
    return results


def metrics(results: Mapping[str, Sequence[CaseResult]], *, least: int = 0) -> dict[str, float]:
    """Figures of each model as they may leave a site.

    ``distance/{median,q25,q75,mean}/<model>/<point>`` in mm over all cases, a missing point counted as infinitely far:
    a figure that is then infinite is left out, which ``missed/<model>/<point>`` of ``points/<model>/<point>`` explain;
    the mean is over the points that were found. ``dice``, ``hd95``, their ``spread`` and ``failures`` per structure.
    What stands on fewer than ``least`` patients, or volumes of a point or of calcium, is left out;
    ``calcium/{volume_error,agatston_error}/<model>``, mean absolute, the volume in mm3.
    """
    scores = {
        model: [CaseScore(one.key, one.patient, one.structures) for one in every] for model, every in results.items()
    }
    masks = {model: every for model, every in scores.items() if any(one.structures for one in every)}
    figures = metrics_of(masks, least=least)
    points = {
        model: [PointCase(one.key, one.patient, one.distances, one.invented) for one in every if one.distances]
        for model, every in results.items()
    }
    for row in summarise_points({model: every for model, every in points.items() if every}):
        place = f"{row.model}/{row.point}"
        said = {"median": row.median, "q25": row.q25, "q75": row.q75, "mean": row.mean}
        if row.n >= least:
            figures |= {f"distance/{what}/{place}": value for what, value in said.items() if math.isfinite(value)}
        figures |= {f"missed/{place}": float(row.missed), f"points/{place}": float(row.n)}
    for model, every in results.items():
        for what in ("volume", "agatston"):
            errors = [abs(one.calcium[what] - one.calcium[f"true_{what}"]) for one in every if one.calcium]
            if len(errors) >= max(1, least):
                figures[f"calcium/{what}_error/{model}"] = math.fsum(errors) / len(errors)
    return figures


def write_results(path: Path, results: Mapping[str, Sequence[CaseResult]], *, experiment: Experiment) -> None:
    """Write every case's result and the figures as JSON, atomically. Cases are salted hashes; it stays at the site."""
    content = {
        "format": FORMAT,
        "study": experiment.study,
        "experiment": experiment.digest,
        "units": {"distances": "mm, null where the point was not found", "dice": "0..1", "hd95": "mm", "volume": "mm3"},
        "models": {model: [to_plain(one) for one in every] for model, every in results.items()},
        "figures": metrics(results),
    }
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False).encode())


def to_plain(result: CaseResult) -> dict[str, Any]:
    """A result as dictionaries and numbers; what is infinite or not a number becomes None."""
    return {
        "key": result.key,
        "patient": result.patient,
        "distances": {name: _or_none(value) for name, value in result.distances.items()},
        "invented": result.invented,
        "structures": {
            name: {"dice": _or_none(one.dice), "hd95": _or_none(one.hd95), "failures": one.failures}
            for name, one in result.structures.items()
        },
        "calcium": dict(result.calcium),
    }


def from_plain(content: Mapping[str, Any]) -> CaseResult:
    """The inverse of ``to_plain``."""
    return CaseResult(
        key=content["key"],
        patient=content["patient"],
        distances={name: math.inf if value is None else value for name, value in content["distances"].items()},
        invented=content["invented"],
        structures={
            name: StructureScore(dice=_or_nan(one["dice"]), hd95=_or_nan(one["hd95"]), failures=one["failures"])
            for name, one in content["structures"].items()
        },
        calcium=dict(content["calcium"]),
    )


def _structures(
    probabilities: torch.Tensor, task: str, marked: TaskVolumes, place: int
) -> tuple[dict[str, StructureScore], np.ndarray, np.ndarray]:
    predicted = label_map(marked.to_native(place, probabilities))
    true = marked.native_label(place)
    labels = dict(enumerate(TASKS[task].names, start=1))
    spacing = marked.native_spacing(place)
    return score_structures(predicted, true, spacing=spacing, labels=labels), predicted, true


def _calcium(volumes: Volumes, index: int, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    image, spacing, axis = volumes.native_image(index), volumes.native_spacing(index), volumes.slice_axis(index)
    scores = {
        whose: calcium_score(image, mask > 0, spacing=spacing, slice_axis=axis)
        for whose, mask in (("", predicted), ("true_", true))
    }
    return {
        f"{whose}{what}": value
        for whose, score in scores.items()
        for what, value in (("volume", score.volume_mm3), ("agatston", score.agatston))
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
