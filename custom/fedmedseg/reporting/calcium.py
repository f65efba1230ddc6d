"""Calcification in CT: volume, and the Agatston score with its conventions spelt out.

Agatston et al., "Quantification of coronary artery calcium using ultrafast computed tomography", Journal of the
American College of Cardiology 1990 [0]: in each slice, every connected region of at least 130 HU and 1 mm2 counts its
area times a weight by its highest value (130-199 HU: 1, 200-299: 2, 300-399: 3, 400 and more: 4). The score is the sum
over slices of 3 mm. Slices of another distance count by their share of 3 mm here, so that scans of one object with thin
and with thick slices score alike; a sum over slices alone would grow with their number.

- [0]: https://doi.org/10.1016/0735-1097(90)90282-T
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmedseg.core.errors import DataError

THRESHOLD_HU = 130.0
LEAST_AREA_MM2 = 1.0
SLICE_MM = 3.0
"""Distance of the slices for which the score is defined."""
WEIGHTS = (130.0, 200.0, 300.0, 400.0)
"""Highest value from which a region weighs 1, 2, 3, 4."""


@dataclass(frozen=True)
class CalciumScore:
    """Of one volume: what is marked, mm3, and of that what reaches 130 HU, mm3 and Agatston.

    ``regions`` counts the two-dimensional regions that entered the score.
    """

    volume_mm3: float
    dense_mm3: float
    agatston: float
    regions: int


def calcium_score(
    hounsfield: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    spacing: Sequence[float],
    slice_axis: int = 2,
) -> CalciumScore:
    """Score what ``mask`` marks in a volume in HU, both (X, Y, Z) of ``spacing`` mm and never resampled.

    ``slice_axis`` is the one along which slices follow each other; their distance is taken for their thickness, so
    that overlapping slices are not counted twice. In a slice, voxels that share a corner are one region.

    Raises:
        DataError: image and mask do not lie on one grid, or spacing is not three positive numbers.
    """
    if hounsfield.shape != mask.shape or mask.ndim != 3:
        raise DataError("mask", got=mask.shape, expected=f"the image's grid {hounsfield.shape}, three axes")
    marked = np.asarray(mask, dtype=bool)
    volume = volume_mm3(marked, spacing)
    dense = marked & (np.asarray(hounsfield) >= THRESHOLD_HU)
    area = math.prod(step for axis, step in enumerate(spacing) if axis != slice_axis)
    scores = [
        score
        for values, part in zip(np.moveaxis(hounsfield, slice_axis, 0), np.moveaxis(dense, slice_axis, 0), strict=True)
        if part.any()
        for score in _regions(values, part, area)
    ]
    return CalciumScore(
        volume_mm3=volume,
        dense_mm3=volume_mm3(dense, spacing),
        agatston=sum(scores) * spacing[slice_axis] / SLICE_MM,
        regions=len(scores),
    )


def volume_mm3(mask: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Volume of a mask whose voxels measure ``spacing`` mm.

    Raises:
        DataError: spacing is not one positive number per axis.
    """
    if len(spacing) != mask.ndim or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError("spacing", got=tuple(spacing), expected=f"{mask.ndim} positive numbers in mm")
    return float(np.count_nonzero(mask)) * math.prod(spacing)


def weight(highest: float) -> int:
    """Agatston's weight of a region by its highest value in HU; 0 below 130."""
    return sum(highest >= step for step in WEIGHTS)


def _regions(values: NDArray[np.floating], part: NDArray[np.bool_], area: float) -> list[float]:
    """Area in mm2 times weight of each region in a slice that is large enough."""
    from scipy.ndimage import label, maximum

    parts, count = label(part, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * area
    highest = maximum(values, parts, numbers)
    return [
        float(size) * weight(float(top))
        for size, top in zip(sizes, highest, strict=True)
        if size >= LEAST_AREA_MM2 * (1 - 1e-9)
    ]
