"""Dice and 95th-percentile Hausdorff distance per case and structure, and how they are summed up."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedmedseg.core.errors import DataError

UNCOUNTED = math.nan
"""Score of a structure that neither the truth nor the prediction holds."""


@dataclass(frozen=True)
class StructureScore:
    """How well one structure was found in one volume, or on average in one patient.

    ``dice`` 0..1 and ``hd95`` in mm are nan where nothing could be counted. ``failures`` counts volumes in
    which only the truth or only the prediction holds the structure.
    """

    dice: float
    hd95: float
    failures: int = 0

    @property
    def counted(self) -> bool:
        """Whether the structure enters any mean."""
        return not math.isnan(self.dice)


@dataclass(frozen=True)
class CaseScore:
    """Scores of one volume, or of one patient. ``key`` and ``patient`` are salted hashes."""

    key: str
    patient: str
    structures: Mapping[str, StructureScore]


@dataclass(frozen=True)
class Summary:
    """One structure under one model over ``n`` cases; sd is the sample's (nan below two cases), HD95 in mm."""

    model: str
    structure: str
    n: int
    dice: float
    dice_sd: float
    hd95: float
    hd95_sd: float
    failures: int


def score_structures(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    *,
    spacing: Sequence[float],
    labels: Mapping[int, str],
    annotated: Iterable[int] | None = None,
    distances: bool = True,
) -> dict[str, StructureScore]:
    """Score every annotated structure of one volume.

    ``prediction`` and ``truth`` are label maps (X, Y[, Z]) on one grid whose voxels measure ``spacing`` mm.
    ``labels`` names the label numbers; ``annotated`` lists those that the truth marks (None: all), the
    others are skipped because their absence from the truth means nothing. Where the truth is partly
    annotated, a prediction of a structure it does not mark is therefore no error. ``distances=False`` leaves
    HD95 out (nan), for the frequent validations that only need Dice.

    Raises:
        DataError: the two maps do not lie on one grid, or spacing is not one positive number per axis.
    """
    if prediction.shape != truth.shape:
        raise DataError("prediction", got=prediction.shape, expected=f"the truth's grid {truth.shape}")
    if len(spacing) != truth.ndim or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError("spacing", got=tuple(spacing), expected=f"{truth.ndim} positive numbers in mm")
    wanted = set(labels) if annotated is None else set(annotated)
    return {
        name: score_mask(prediction == number, truth == number, spacing=spacing, distances=distances)
        for number, name in labels.items()
        if number in wanted
    }


def score_mask(
    predicted: NDArray[np.bool_], true: NDArray[np.bool_], *, spacing: Sequence[float], distances: bool = True
) -> StructureScore:
    """Dice and HD95 of one structure's two masks (X, Y[, Z]).

    Held by neither: not counted. Held by one of them only: a failure with Dice 0 and, as the worst
    distance the volume allows, its diagonal; leaving such cases out would reward a model that finds nothing.
    """
    found, there = bool(predicted.any()), bool(true.any())
    if not found and not there:
        return StructureScore(dice=UNCOUNTED, hd95=UNCOUNTED)
    if found != there:
        return StructureScore(dice=0.0, hd95=diagonal(true.shape, spacing) if distances else UNCOUNTED, failures=1)
    return StructureScore(
        dice=dice(predicted, true),
        hd95=hausdorff95(predicted, true, spacing=spacing) if distances else UNCOUNTED,
    )


def dice(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """2|A∩B| / (|A|+|B|) of two masks (nan where both are empty), by MONAI."""
    from monai.metrics import compute_dice

    return float(compute_dice(_batched(predicted), _batched(true), include_background=True, ignore_empty=True))


def hausdorff95(predicted: NDArray[np.bool_], true: NDArray[np.bool_], *, spacing: Sequence[float]) -> float:
    """The larger of the two directions' 95th percentiles of surface distances in mm, by MONAI.

    A mask's surface are its voxels that touch the outside by a face, the volume's edge included; percentiles
    interpolate linearly. Both masks must hold something.
    """
    from monai.metrics import compute_hausdorff_distance

    box = _common_box(predicted | true)
    with warnings.catch_warnings():
        # MONAI warns of an option that it passes to itself
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(
            _batched(predicted[box]),
            _batched(true[box]),
            include_background=True,
            percentile=95,
            spacing=[float(step) for step in spacing],
        )
    return float(distance)


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length in mm of the diagonal of a volume of ``shape`` voxels of ``spacing`` mm."""
    return math.sqrt(sum((count * step) ** 2 for count, step in zip(shape, spacing, strict=True)))


def per_patient(scores: Iterable[CaseScore]) -> list[CaseScore]:
    """One score per patient, in order of first appearance.

    Dice and HD95 are means over the patient's volumes that count the structure (end-diastole and
    end-systole, say), failures are added up. Volumes of one patient are not independent, so means and
    spreads over a site are taken over patients.
    """
    grouped: dict[str, list[CaseScore]] = {}
    for score in scores:
        grouped.setdefault(score.patient, []).append(score)
    return [
        CaseScore(
            key=patient,
            patient=patient,
            structures={name: _merge(volumes, name) for name in _structure_names(volumes)},
        )
        for patient, volumes in grouped.items()
    ]


def summarise(scores: Mapping[str, Sequence[CaseScore]]) -> list[Summary]:
    """Mean, sample standard deviation, count and failures for each model and structure.

    ``scores`` maps a model's name to its cases (give ``per_patient`` results for figures over patients).
    A structure that no case counts has n 0 and nan means.
    """
    return [
        _summary(model, name, [case.structures[name] for case in cases if name in case.structures])
        for model, cases in scores.items()
        for name in _structure_names(cases)
    ]


def mean_dice(cases: Sequence[CaseScore]) -> float:
    """Mean over structures of the mean Dice over cases: every structure weighs the same. nan if none counts."""
    means = [row.dice for row in summarise({"": cases}) if row.n]
    return float(np.mean(means)) if means else math.nan


def _summary(model: str, structure: str, scores: Sequence[StructureScore]) -> Summary:
    counted = [score for score in scores if score.counted]
    dice_mean, dice_sd = _mean_and_sd([score.dice for score in counted])
    hd95_mean, hd95_sd = _mean_and_sd([score.hd95 for score in counted])
    return Summary(
        model=model,
        structure=structure,
        n=len(counted),
        dice=dice_mean,
        dice_sd=dice_sd,
        hd95=hd95_mean,
        hd95_sd=hd95_sd,
        failures=sum(score.failures for score in scores),
    )


def _merge(volumes: Sequence[CaseScore], name: str) -> StructureScore:
    one = _summary("", name, [volume.structures[name] for volume in volumes if name in volume.structures])
    return StructureScore(dice=one.dice, hd95=one.hd95, failures=one.failures)


def _structure_names(cases: Iterable[CaseScore]) -> list[str]:
    return list(dict.fromkeys(name for case in cases for name in case.structures))


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else math.nan
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return mean, spread


def _batched(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]


def _common_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds every voxel of ``mask``: distances do not depend on what lies outside."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        held = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(box)
