"""The settings of a study of two shapes in slices, small enough to build in a moment, and a network that was not
trained but does not stand at its start."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def tiny(*names: str, spacing: tuple[float | None, ...] = (None, None, None), **network: Any) -> dict[str, Any]:
    """``names``: its structures, disc and bar where none is given; ``network``: further settings of the U-Net."""
    return {
        "data": {
            "role": "shapes",
            "modality": "mr",
            "spatial_dims": 2,
            "labels": dict(enumerate(names or ("disc", "bar"), start=1)),
            "crop": [16, 16],
            "spacing": list(spacing),
            "phantom": None,
        },
        "network": {"name": "unet", "channels": [4, 8], "res_units": 1, **network},
    }


def moved(network: nn.Module, *, by: float, seed: int = 3) -> nn.Module:
    """``network``, every parameter moved by normal noise of standard deviation ``by``: its answers mark something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return network
