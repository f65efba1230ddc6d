"""A crop cut into the units that a token stands for."""

from __future__ import annotations

import torch


def cut_units(images: torch.Tensor, *, unit: int) -> torch.Tensor:
    """Crops (B, 1, *crop) as units of ``unit`` voxels per axis: (B, tokens, unit ** dims).

    Units are in the order of the encoders' tokens (last axis fastest), as are the voxels of a unit.

    Raises:
        ValueError: more than one channel, or a crop that ``unit`` does not divide.
    """
    if images.shape[1] != 1 or any(edge % unit for edge in images.shape[2:]):
        raise ValueError(f"crops (B, 1, *crop) with edges that divide by {unit}, not {tuple(images.shape)}")
    dims = images.ndim - 2
    cut = images.squeeze(1).unflatten(1, (-1, unit))
    for axis in range(1, dims):
        cut = cut.unflatten(1 + 2 * axis, (-1, unit))
    coarse, fine = range(1, 2 * dims, 2), range(2, 2 * dims + 1, 2)
    return cut.permute(0, *coarse, *fine).flatten(1, dims).flatten(2)
