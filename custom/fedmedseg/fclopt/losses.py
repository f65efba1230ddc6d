"""FCLOpt's loss: predictions of one view approach the target network's projections of the other; nothing is repelled.

Wu et al., "Distributed contrastive learning for medical image segmentation", Medical Image Analysis 81:102564, 2022,
name a learning without negatives; its formulas were not available. The symmetric loss is BYOL's (Grill et al. 2020),
and the structural positive keeps the idea of the paper's global structural matching at the site (our reconstruction):

    L = [2 - 2 cos(q(v), z'(v'))] + [2 - 2 cos(q(v'), z'(v))] + lambda_s mean_i [2 - 2 cos(q(v_i), z'(v'_j))]

with q the online network's prediction, z' the target network's projection, which no gradient reaches, and j a slice of
another volume in the same part of its stack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional


def regression_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of 2 - 2 cos over rows of two (B, d) tensors, a scalar between 0 and 4; targets get no gradient."""
    cosines = functional.cosine_similarity(predictions.float(), targets.detach().float(), dim=1)
    return (2.0 - 2.0 * cosines).mean()


def symmetric_loss(
    first: torch.Tensor, second: torch.Tensor, first_targets: torch.Tensor, second_targets: torch.Tensor
) -> torch.Tensor:
    """Each view's prediction against the other view's target."""
    return regression_loss(first, second_targets) + regression_loss(second, first_targets)


def structural_partners(volumes: Sequence[int], parts: Sequence[int], rng: np.random.Generator) -> list[int | None]:
    """For every slice the place of one of another volume in the same part, drawn at random; None without any."""
    partners: list[int | None] = []
    for volume, part in zip(volumes, parts, strict=True):
        candidates = [
            place
            for place, (other, its) in enumerate(zip(volumes, parts, strict=True))
            if its == part and other != volume
        ]
        partners.append(candidates[int(rng.integers(len(candidates)))] if candidates else None)
    return partners


def structural_loss(
    predictions: torch.Tensor, targets: torch.Tensor, partners: Sequence[int | None]
) -> torch.Tensor | None:
    """``regression_loss`` of every slice that has a partner and that partner's target; None where none has."""
    having = [place for place, partner in enumerate(partners) if partner is not None]
    if not having:
        return None
    chosen = [partner for partner in partners if partner is not None]
    return regression_loss(predictions[having], targets[chosen])
