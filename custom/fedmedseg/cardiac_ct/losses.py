"""What a task's head is trained by [0, 1]: cross-entropy and soft Dice, over the heads whose labels are there.

For logits z and an integer label y, with F the foreground classes and TP, FP, FN soft and summed over batch and space:
L = CE(softmax z, y) - 1/|F| sum over c in F of (2 TP_c + 1) / (2 TP_c + FP_c + FN_c + 1). The lower bound is -1: a
negative loss is normal. The deep supervision's levels weigh 1, 1/2, 1/4, ..., which is not normalised.

[0] Tölle et al. 2025, see ``cardiac_ct.network``
[1] nnU-Net, DC_and_CE_loss with weights 1 and 1, batch_dice, do_bg False, smooth 1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

SMOOTH = 1.0


def dice_and_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``logits`` (B, C, ...), ``target`` (B, ...) int64; the lower bound is -1."""
    flat = target.flatten(1)
    scores = logits.flatten(2)
    cross_entropy = functional.cross_entropy(scores, flat)
    # 2 TP + FP + FN is the sum of probabilities and truth
    probabilities = torch.softmax(scores, dim=1)[:, 1:]
    truth = functional.one_hot(flat, logits.shape[1]).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    overlap = (probabilities * truth).sum(dim=(0, 2))
    both = probabilities.sum(dim=(0, 2)) + truth.sum(dim=(0, 2))
    dice = (2.0 * overlap + SMOOTH) / (both + SMOOTH)
    return cross_entropy - dice.mean()


def heatmap_error(logits: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Squared error of Gaussian heat maps, relative to their own squares, an option beside the published spheres.

    ``logits`` (B, 1 + K, ...), of which the background is not read; ``maps`` (B, K, ...) in 0..1. At least 0.
    """
    found = torch.sigmoid(logits[:, 1:])
    return ((found - maps) ** 2).sum() / ((maps**2).sum() + SMOOTH)


def task_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of one head: heat maps where ``target`` is floating-point (B, K, ...), else labels (B, ...)."""
    if target.is_floating_point():
        return heatmap_error(logits, target)
    return dice_and_cross_entropy(logits, target)


def deeply_supervised(levels: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Sum over ``levels``, finest first, of 2^-k times the loss; all are of the target's size."""
    losses = [0.5**level * task_loss(logits, target) for level, logits in enumerate(levels)]
    return torch.stack(losses).sum()
