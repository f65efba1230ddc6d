"""The bank of features: the site's own, first in first out, the others' as they came, and what a step samples of both.

The published description replaces a round's old entries by new ones as training goes on, compares with K entries drawn
uniformly from own and received ones together, because all of them would be too many negatives, and puts features of the
momentum encoder into the bank alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fedmedseg.core.exchange import Features
from fedmedseg.fcl.losses import Rows

OTHERS = -1
"""Slice number of a received feature: no slice of this site is called so."""


class FeatureBank:
    """The site's own features, at most ``capacity`` of them; the slices they are of never leave the site."""

    def __init__(self, *, capacity: int, width: int, device: torch.device) -> None:
        self.capacity, self.width, self.device = capacity, width, device
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self.rows = Rows(
            vectors=torch.zeros(0, self.width, device=self.device),
            parts=torch.zeros(0, dtype=torch.uint8, device=self.device),
            slices=torch.zeros(0, dtype=torch.int64, device=self.device),
        )

    def __len__(self) -> int:
        return int(self.rows.parts.shape[0])

    def push(self, rows: Rows) -> None:
        """Add ``rows``; the oldest beyond ``capacity`` go."""
        joined = together(self.rows, rows)
        keep = slice(max(0, len(joined.parts) - self.capacity), None)
        self.rows = Rows(
            vectors=joined.vectors[keep].detach().clone(),
            parts=joined.parts[keep].clone(),
            slices=joined.slices[keep].clone(),
        )

    def features(self) -> Features:
        """What may leave: vectors and parts, on the CPU; without the slices."""
        return Features(vectors=self.rows.vectors.cpu().clone(), parts=self.rows.parts.cpu().clone())

    def state(self) -> dict[str, torch.Tensor]:
        """A checkpoint tree from which ``restore`` continues exactly."""
        return {"vectors": self.rows.vectors, "parts": self.rows.parts, "slices": self.rows.slices}

    def restore(self, tree: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``state`` returned."""
        self.rows = Rows(**{name: tree[name].to(self.device) for name in ("vectors", "parts", "slices")})


def capacity_of(*, size: int, share: float, slices: int) -> int:
    """Entries of a bank at a site of so many slices: ``size``, and at most ``share`` of the slices.

    At least two, where there are two: a single slice has no spread to be normalised by in the projector.
    """
    return max(min(2, slices), min(size, math.floor(share * slices + 1e-9)))


def received_rows(features: Features | None, *, width: int, device: torch.device) -> Rows:
    """The others' features as rows of no slice of this site; none where nothing was received."""
    if features is None:
        features = Features(vectors=torch.zeros(0, width), parts=torch.zeros(0, dtype=torch.uint8))
    return Rows(
        vectors=features.vectors.to(device),
        parts=features.parts.to(device),
        slices=torch.full((len(features),), OTHERS, dtype=torch.int64, device=device),
    )


def together(one: Rows, other: Rows) -> Rows:
    """Rows of both, one after the other."""
    return Rows(
        vectors=torch.cat([one.vectors, other.vectors]),
        parts=torch.cat([one.parts, other.parts]),
        slices=torch.cat([one.slices, other.slices]),
    )


def sampled(own: Rows, received: Rows, *, count: int) -> Rows:
    """``count`` rows drawn uniformly without replacement from both; all, in random order, where there are fewer.

    By torch's global generator, which the training loop seeds for every step.
    """
    everything = together(own, received)
    order = torch.randperm(len(everything.parts))[:count].to(everything.parts.device)
    return Rows(vectors=everything.vectors[order], parts=everything.parts[order], slices=everything.slices[order])
