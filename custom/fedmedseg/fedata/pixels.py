"""Pixels as targets: units of a crop (``networks.units``), normalised or not, and the losses over masked ones."""

from __future__ import annotations

import torch
from torch.nn import functional

VARIANCE_FLOOR = 1e-6


def normalised_units(units: torch.Tensor) -> torch.Tensor:
    """Every unit less its mean, over its standard deviation (n - 1): the target of He et al. (2022), section 4.1.

    A constant unit (air) becomes zero.
    """
    mean = units.mean(dim=-1, keepdim=True)
    variance = units.var(dim=-1, keepdim=True)
    return (units - mean) / (variance + VARIANCE_FLOOR).sqrt()


def pixel_l1(prediction: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over the voxels of masked units (SimMIM, Xie et al. 2022): both (B, masked, voxels)."""
    return functional.l1_loss(prediction.float(), units)


def pixel_mse(prediction: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the voxels of masked units (MAE, He et al. 2022): both (B, masked, voxels)."""
    return functional.mse_loss(prediction.float(), units)
