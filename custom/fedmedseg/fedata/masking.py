"""Which units of a crop the student does not see."""

from __future__ import annotations

import math

import torch


def masked_units(units: int, ratio: float) -> int:
    """Number of masked units: the ratio, rounded up (152 of 216 at 0.7)."""
    # 0.55 * 100 is a little more than 55 in floating point
    return math.ceil(ratio * units - 1e-9)


def random_masks(
    crops: int, crop: tuple[int, ...], *, unit: int, ratio: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Independent masks, (crops, *crop / unit), true where hidden; every crop hides equally many units.

    ``crop`` and ``unit`` are in voxels. Drawn from ``generator``, or from torch's global CPU generator.
    """
    grid = tuple(edge // unit for edge in crop)
    units = math.prod(grid)
    hidden = torch.rand(crops, units, generator=generator).argsort(dim=1)[:, : masked_units(units, ratio)]
    masks = torch.zeros(crops, units, dtype=torch.bool)
    masks.scatter_(1, hidden, True)
    return masks.reshape(crops, *grid)
