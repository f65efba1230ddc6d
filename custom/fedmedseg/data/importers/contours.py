"""Contour files of one point per line, and closed polygons as pixel masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedmedseg.core.errors import DataError
from fedmedseg.data.importers.base import reading


def read_contour(path: Path) -> np.ndarray:
    """Points (N, 2) as x (column) and y (row) in pixels.

    Raises:
        DataError: fewer than three points, or a line that is not two finite numbers.
    """
    with reading(path):
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        points = np.array([[float(x), float(y)] for x, y in lines]).reshape(-1, 2)
    if len(points) < 3 or not np.isfinite(points).all():
        raise DataError(
            "contour",
            got=f"{len(points)} point(s) in {path}",
            expected="three finite points or more",
        )
    return points


def fill(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mask (X, Y) of the pixels whose centre lies inside the closed polygon ``points`` (N, 2), by the even-odd rule.

    A pixel's centre has whole coordinates. A centre on the outline counts as inside at the low-x side and
    outside at the high-x side, so that neighbouring polygons share no pixel.
    """
    mask = np.zeros(shape, dtype=bool)
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    low = max(0, int(np.ceil(points[:, 1].min())))
    high = min(shape[1] - 1, int(np.floor(points[:, 1].max())))
    columns = np.arange(shape[0])
    for row in range(low, high + 1):
        # half-open in y: an outline that passes through a vertex is crossed once
        crossed = (y0 <= row) != (y1 <= row)
        at = x0[crossed] + (row - y0[crossed]) / (y1[crossed] - y0[crossed]) * (x1[crossed] - x0[crossed])
        mask[:, row] = (at[None, :] <= columns[:, None]).sum(axis=1) % 2 == 1
    return mask


def area(points: np.ndarray) -> float:
    """Area enclosed by the polygon in square pixels (shoelace formula)."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
