"""The encoder of a BasicUNet on its own, and the projector that self-supervised learning puts behind it."""

from __future__ import annotations

import torch
from torch import nn

from fedmedseg.networks.factory import ENCODER_LEVELS


class UNetEncoder(nn.Module):
    """The first convolutions and the four levels of ``model``, a BasicUNet, under the names that they have there.

    The tensors are the model's own, not copies.
    """

    def __init__(self, *, model: nn.Module) -> None:
        super().__init__()
        for level in ENCODER_LEVELS:
            self.add_module(level, getattr(model, level))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, X / 16, Y / 16) of images (B, 1, X, Y)."""
        maps = images
        for level in ENCODER_LEVELS:
            maps = getattr(self, level)(maps)
        return maps


class Projector(nn.Module):
    """Global average pool, linear layer, ReLU, linear layer; with ``norm``, batch norm before the ReLU.

    The sizes of FCL's sibling code are 768, 768 and 512; ours end with 128 (reconstruction), which is what is sent.
    """

    def __init__(self, *, width: int, hidden: int, out: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.last = nn.Linear(hidden, out)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Projections (B, out), not normalised, of feature maps (B, width, ...) or vectors (B, width)."""
        vectors = maps.flatten(2).mean(dim=2) if maps.ndim > 2 else maps
        return self.last(torch.relu(self.norm(self.first(vectors))))
