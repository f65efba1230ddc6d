"""What a label file holds: how many voxels of each number."""

from __future__ import annotations

from pathlib import Path

from fedmedseg.core.errors import DataError
from fedmedseg.data.importers.base import nifti, reading


def label_voxels(path: Path) -> dict[int, int]:
    """Label number -> voxels, background left out.

    Raises:
        DataError: unreadable, or values that are no label numbers.
    """
    import numpy as np

    with reading(path):
        values, numbers = np.unique(np.asanyarray(nifti(path).dataobj), return_counts=True)
    if not np.isfinite(values).all() or (values != np.round(values)).any() or (values < 0).any():
        raise DataError("label", got=f"{path.name} with values that are no whole numbers", expected="label numbers")
    return {int(value): int(number) for value, number in zip(values, numbers, strict=True) if value != 0}
