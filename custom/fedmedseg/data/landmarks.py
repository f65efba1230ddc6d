"""Landmark files: the points that somebody placed in a scan, by name, in mm of the world (right, anterior, superior).

A JSON object, ``{"RCC": [12.5, -8.0, 101.2], "MS1": null}``: null says that the point was looked for and is not in the
scan. A name that is not there was not looked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmedseg.data.checks import CaseRejected
from fedmedseg.data.geometry import Grid

Place = tuple[float, float, float]

NAMES = ("RCC", "LCC", "NCC", "RCA", "LCA", "MS1", "MS2")
SYNONYMS = {"ACC": "NCC", "RCO": "RCA", "LCO": "LCA"}
"""What the same points are called elsewhere: the cusp opposite the ostia, and the ostia."""
MOST_BYTES = 1 << 16


def read_landmarks(path: Path) -> dict[str, Place | None]:
    """Name -> (x, y, z) in mm, or None for a point that is not in the scan.

    Raises:
        CaseRejected: not such a file, an unknown name, one point twice, or not three finite coordinates.
    """
    try:
        with open(path, "rb") as stream:
            content = json.loads(stream.read(MOST_BYTES + 1))
    except OSError:
        raise CaseRejected("landmark file that cannot be read") from None
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise CaseRejected("landmark file that is no JSON") from None
    if not isinstance(content, dict):
        raise CaseRejected("landmark file that is no JSON object")
    found: dict[str, Place | None] = {}
    for given, place in content.items():
        name = SYNONYMS.get(given, given)
        if name not in NAMES:
            raise CaseRejected("landmark with an unknown name")
        if name in found:
            raise CaseRejected("landmark under two names")
        found[name] = None if place is None else _place(place)
    return found


def check_landmarks(path: Path, grid: Grid) -> None:
    """Every point of the file lies in the image whose grid is given.

    Raises:
        CaseRejected: as ``read_landmarks``, or a point outside the image.
    """
    rows = as_rows(read_landmarks(path), NAMES)
    voxels = to_voxel(rows[~np.isnan(rows[:, 0])], grid.affine)
    if (voxels < -0.5).any() or (voxels > np.array(grid.shape) - 0.5).any():
        raise CaseRejected("landmark outside the image")


def as_rows(landmarks: Mapping[str, Place | None], names: Sequence[str]) -> NDArray[np.float64]:
    """The points ``names`` as rows (K, 3) in mm; one that is not known is a row of nan and moves no other."""
    missing = (math.nan,) * 3
    return np.array([landmarks.get(name) or missing for name in names], dtype=np.float64).reshape(len(names), 3)


def to_voxel(world: NDArray[np.floating], affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points (N, 3) in mm as continuous voxel indices of a grid; rows of nan stay so."""
    return _mapped(world, np.linalg.inv(affine))


def to_world(voxels: NDArray[np.floating], affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """Continuous voxel indices (N, 3) of a grid in mm; rows of nan stay so."""
    return _mapped(voxels, np.asarray(affine, dtype=np.float64))


def _mapped(points: NDArray[np.floating], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points, dtype=np.float64).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]


def _place(value: object) -> Place:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise CaseRejected("landmark without three coordinates")
    try:
        x, y, z = (float(number) for number in numbers)
    except OverflowError:
        x = y = z = math.inf
    if not all(map(math.isfinite, (x, y, z))):
        raise CaseRejected("landmark whose coordinates are not finite")
    return x, y, z
