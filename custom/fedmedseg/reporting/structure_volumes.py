"""Volumes of structures in ml from a label map, and what two of them say of the heart: ejection fraction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmedseg.core.errors import DataError

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class StructureVolume:
    """One structure in one label map."""

    voxels: int
    ml: float


@dataclass(frozen=True)
class Ventricle:
    """What the cavity's volumes at end-diastole and end-systole (ml) come to; nan where there is no cavity."""

    diastolic_ml: float
    systolic_ml: float

    @property
    def stroke_ml(self) -> float:
        """Volume that a beat moves, ml."""
        return self.diastolic_ml - self.systolic_ml

    @property
    def ejection_fraction(self) -> float:
        """Share of the end-diastolic volume that a beat moves, per cent; nan without one."""
        return 100.0 * self.stroke_ml / self.diastolic_ml if self.diastolic_ml > 0 else math.nan

    @property
    def doubt(self) -> str | None:
        """Why the figures should not be believed, or None."""
        if self.diastolic_ml <= 0:
            return "no cavity at end-diastole"
        if self.systolic_ml > self.diastolic_ml:
            return "larger at end-systole than at end-diastole: the frames may have changed places"
        return None


def structure_volumes(
    labels: NDArray[np.integer], names: Mapping[int, str], affine: NDArray[np.floating]
) -> dict[str, StructureVolume]:
    """Voxels and ml of every structure of ``names`` (label number -> name) in ``labels`` (X, Y, Z), found or not.

    A voxel's volume is the determinant of ``affine`` (mm), which is right for tilted and sheared grids too.

    Raises:
        DataError: an affine whose voxels have no volume.
    """
    each = abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))
    if not math.isfinite(each) or each == 0.0:
        raise DataError("affine", got=f"voxels of {each} mm3", expected="voxels that have a volume")
    counts = np.bincount(labels.ravel(), minlength=max(names, default=0) + 1)
    return {
        name: StructureVolume(voxels=int(counts[number]), ml=float(counts[number]) * each / MM3_PER_ML)
        for number, name in names.items()
    }
