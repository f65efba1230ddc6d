"""Volumes of structures in ml from a label map, and what two of them say of the heart: ejection fraction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedmedseg.core.errors import DataError

MM3_PER_ML = 1000.0
ONE_PIECE = 0.9
"""Share of a structure's voxels from which on its largest piece is the structure, and the rest crumbs."""


@dataclass(frozen=True)
class StructureVolume:
    """One structure in one label map."""

    voxels: int
    ml: float
    pieces: int
    """Parts that touch each other by no face."""
    largest: float
    """Share of the voxels in the largest piece, or in as many as it has by nature; nan where nothing was found."""
    natural: int | None = 1
    """Pieces it has by nature: an organ one, the coronary arteries two; None: any number, as calcifications."""

    @property
    def doubt(self) -> str | None:
        """Why the figure should be looked at, or None: not found, or in pieces, which an organ is not."""
        if self.voxels == 0:
            return "not found"
        if self.natural is None or self.largest >= ONE_PIECE:
            return None
        largest = "the largest" if self.natural == 1 else f"the {self.natural} largest"
        return f"in {self.pieces} pieces, {largest} {self.largest:.0%} of it"


@dataclass(frozen=True)
class Ventricle:
    """What the cavity's volumes at end-diastole and end-systole (ml) come to; nan where there is no cavity."""

    diastolic_ml: float
    systolic_ml: float
    doubts: tuple[str, ...] = ()
    """Of the two volumes, where there are any."""

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
        swapped = "larger at end-systole than at end-diastole: the frames may have changed places"
        return "; ".join([*([swapped] if self.systolic_ml > self.diastolic_ml else []), *self.doubts]) or None


def structure_volumes(
    labels: NDArray[np.integer],
    names: Mapping[int, str],
    affine: NDArray[np.floating],
    *,
    natural: Mapping[str, int | None] = MappingProxyType({}),
) -> dict[str, StructureVolume]:
    """Voxels, ml and pieces of every structure of ``names`` (number from 1 -> name) in ``labels`` (X, Y, Z).

    ``natural`` says of what is no organ in one piece how many it has (``StructureVolume.natural``).

    A voxel's volume is the determinant of ``affine`` (mm), which is right for tilted and sheared grids too.

    Raises:
        DataError: an affine whose voxels have no volume.
    """
    each = abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))
    if not math.isfinite(each) or each == 0.0:
        raise DataError("affine", got=f"voxels of {each} mm3", expected="voxels that have a volume")
    # numbers between that no structure has leave None among the boxes
    boxes = ndimage.find_objects(labels, max_label=max(names, default=0))
    return {
        name: _measured(labels, number, boxes[number - 1], each, natural.get(name, 1)) for number, name in names.items()
    }


def _measured(
    labels: NDArray[np.integer], number: int, box: tuple[slice, ...] | None, each: float, natural: int | None
) -> StructureVolume:
    if box is None:
        return StructureVolume(voxels=0, ml=0.0, pieces=0, largest=math.nan, natural=natural)
    parts, pieces = ndimage.label(labels[box] == number)
    sizes = np.bincount(parts.ravel())[1:]
    voxels = int(sizes.sum())
    largest = float(np.sort(sizes)[-(natural or 1) :].sum()) / voxels
    return StructureVolume(
        voxels=voxels, ml=voxels * each / MM3_PER_ML, pieces=int(pieces), largest=largest, natural=natural
    )
