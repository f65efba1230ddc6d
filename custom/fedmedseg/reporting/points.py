"""Distances of landmarks in mm and how they are summed up: none is left out, and a point not found is a failure.

The authors of the cardiac CT study print means over distances below 10 mm only, and let a missing point shift the later
ones against the truth (eval_federated.ipynb); neither is done here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmedseg.core.errors import DataError
from fedmedseg.reporting.paired import Paired, paired

FAR_MM = 10.0
"""A point found further off than this is counted on its own, beside those not found."""
ALL = "all points"
"""Name of the summary over every point."""


@dataclass(frozen=True)
class PointCase:
    """Distances of one volume by the point's name, mm; ``inf`` where a point was not found.

    ``key`` and ``patient`` are salted hashes. Points that are not in the scan have no distance and no name here.
    """

    key: str
    patient: str
    distances: Mapping[str, float]
    invented: int = 0
    """Points that were found and are not in the scan."""


@dataclass(frozen=True)
class PointSummary:
    """One point under one model over ``n`` volumes that hold it; distances in mm.

    Median and quartiles count a point not found as infinitely far. ``mean`` is over those found, however far (nan
    where none was), so it stands beside ``missed``. ``far`` are found and more than 10 mm off.
    """

    model: str
    point: str
    n: int
    median: float
    q25: float
    q75: float
    mean: float
    missed: int
    far: int
    invented: int = 0
    """Only in the summary over every point."""

    @property
    def failure_rate(self) -> float:
        """Share of the points that were not found."""
        return self.missed / self.n if self.n else math.nan


@dataclass(frozen=True)
class PointComparison:
    """Two models on the same volumes.

    ``distances`` compares, patient by patient, the mean distance in mm over the points that both models found (first
    less second). ``only_first`` and ``only_second`` count points that one of them found and the other did not: missing
    what is difficult is no gain.
    """

    distances: Paired
    only_first: int
    only_second: int


def point_distances(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Euclidean distance (K,) between the rows of two (K, 3) arrays in mm.

    A row of nan in ``truth`` is a point not in the scan: nan, whatever was predicted. A row of nan in ``predicted``
    alone is a point not found: inf.

    Raises:
        DataError: the two do not hold the same points.
    """
    found, true = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if found.shape != true.shape or found.ndim != 2 or found.shape[1] != 3:
        raise DataError("points", got=f"{found.shape} predicted, {true.shape} true", expected="the same (K, 3)")
    there, seen = ~np.isnan(true).any(axis=1), ~np.isnan(found).any(axis=1)
    distance = np.where(seen, np.sqrt(((found - true) ** 2).sum(axis=1)), np.inf)
    return np.where(there, distance, np.nan)


def score_points(predicted: ArrayLike, truth: ArrayLike, *, names: Sequence[str], key: str, patient: str) -> PointCase:
    """One volume's points (K, 3) in mm against the true ones, by their ``names``.

    Raises:
        DataError: not one row per name.
    """
    if len(np.asarray(truth)) != len(names):
        raise DataError("points", got=f"{len(np.asarray(truth))} rows", expected=f"one for each of {', '.join(names)}")
    distances = point_distances(predicted, truth)
    invented = np.isnan(distances) & ~np.isnan(np.asarray(predicted, dtype=np.float64)).any(axis=1)
    scored = {
        name: float(distance) for name, distance in zip(names, distances, strict=True) if not math.isnan(distance)
    }
    return PointCase(key=key, patient=patient, distances=scored, invented=int(invented.sum()))


def summarise_points(cases: Mapping[str, Sequence[PointCase]]) -> list[PointSummary]:
    """A summary for each model (a name in ``cases``) and point, in the order of first appearance, then over all."""
    rows = []
    for model, scored in cases.items():
        for name in dict.fromkeys(name for case in scored for name in case.distances):
            rows.append(_summary(model, name, [case.distances[name] for case in scored if name in case.distances]))
        every = [distance for case in scored for distance in case.distances.values()]
        rows.append(_summary(model, ALL, every, invented=sum(case.invented for case in scored)))
    return rows


def median_and_quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, first and third quartile (linear) of values that may be inf; nan of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan, math.nan, math.nan
    median, first, third = (_quantile(ordered, share) for share in (0.5, 0.25, 0.75))
    return median, first, third


def compare_points(first: Sequence[PointCase], second: Sequence[PointCase]) -> PointComparison:
    """The volumes that both models scored, told by their keys."""
    others = {case.key: case for case in second}
    patients: dict[str, list[tuple[float, float]]] = {}
    for case in first:
        if case.key in others:
            other = others[case.key].distances
            patients.setdefault(case.patient, []).extend(
                (case.distances[name], other[name]) for name in case.distances if name in other
            )
    both = [[pair for pair in pairs if all(map(math.isfinite, pair))] for pairs in patients.values()]
    means = [np.mean(pairs, axis=0) for pairs in both if pairs]
    every = [pair for pairs in patients.values() for pair in pairs]
    return PointComparison(
        distances=paired([float(one) for one, _ in means], [float(other) for _, other in means]),
        only_first=sum(math.isfinite(one) and math.isinf(other) for one, other in every),
        only_second=sum(math.isinf(one) and math.isfinite(other) for one, other in every),
    )


def _summary(model: str, point: str, distances: Sequence[float], *, invented: int = 0) -> PointSummary:
    median, first, third = median_and_quartiles(distances)
    found = [distance for distance in distances if math.isfinite(distance)]
    return PointSummary(
        model=model,
        point=point,
        n=len(distances),
        median=median,
        q25=first,
        q75=third,
        mean=float(np.mean(found)) if found else math.nan,
        missed=len(distances) - len(found),
        far=sum(distance > FAR_MM for distance in found),
        invented=invented,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours, as NumPy does it, but inf between a number and inf, where NumPy has nan."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    rest = place - math.floor(place)
    if low == high or rest == 0:
        return low
    return math.inf if math.isinf(high) else low + rest * (high - low)
