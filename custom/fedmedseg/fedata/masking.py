"""Which units of a crop the student does not see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Places:
    """Token numbers per crop, ascending: ``visible`` (B, V) and ``hidden`` (B, M)."""

    visible: torch.Tensor
    hidden: torch.Tensor


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


def places(masks: torch.Tensor) -> Places:
    """Where the tokens of masks (B, *grid) are visible and where hidden.

    Raises:
        ValueError: crops that hide different numbers of tokens, which no one gather could take.
    """
    flat = masks.flatten(1)
    counts = flat.sum(dim=1)
    if bool((counts != counts[0]).any()):
        raise ValueError(f"masks that hide equally many tokens in every crop, not {counts.tolist()}")
    order = flat.to(torch.uint8).argsort(dim=1, stable=True)
    visible = flat.shape[1] - int(counts[0])
    return Places(visible=order[:, :visible], hidden=order[:, visible:])


def pick(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, C) at ``index`` (B, M): (B, M, C)."""
    return tokens.take_along_dim(index.unsqueeze(-1), dim=1)
