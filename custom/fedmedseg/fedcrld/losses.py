"""FedCRLD's loss terms [0], each a function of tensors: corrected, and as the published code [1] has them.

With p the client's probabilities, y the one-hot label, p~, G~, F~ those of the bank (no gradient), G and F the
client's global and local bottlenecks:

    L = L_D(p, y) + CE(y, p) + 0.2 CE(p~, p) + [MSE(G~, G) + MSE(F~, F)] + 1/2 [KL(s(F) | s(G)) + KL(s(G) | s(F))]

The published code has the arguments of CE reversed (the prediction outside the logarithm, the label inside), which
makes it linear in p; and its s is a softmax over the last axis alone, averaged over elements. ``form`` says which.
The "contrastive difference" pulls the two bottlenecks together and knows no negatives; ``moon_contrast`` does.

[0] Qi et al., Contrastive Re-localization and History Distillation in Federated CMR Segmentation, MICCAI 2022
[1] https://github.com/JerryQseu/FedCRLD, train.py and metrics.py
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

Form = Literal["corrected", "published"]
EPSILON = 1e-6
"""Inside every logarithm of the cross-entropies; -log(EPSILON) is 13.8155."""
SMOOTH = 1.0


def dice_loss(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - mean over classes of (2 sum p y + 1) / (sum p + sum y + 1), background included.

    Both (B, C, ...); sums run over batch and positions.
    """
    axes = [axis for axis in range(probabilities.ndim) if axis != 1]
    shared = (probabilities * target).sum(axes)
    both = probabilities.sum(axes) + target.sum(axes)
    return 1.0 - ((2.0 * shared + SMOOTH) / (both + SMOOTH)).mean()


def cross_entropy(probabilities: torch.Tensor, target: torch.Tensor, *, form: Form) -> torch.Tensor:
    """Of ``probabilities`` (B, C, ...), which carry the gradient, to ``target`` (B, C, ...), which does not.

    ``corrected``: - sum over classes of q log(p + 1e-6), averaged over positions. ``published``: - p log(q + 1e-6),
    averaged over all elements; with a one-hot q that is (1 - p_y) 13.8155 / C at every position.
    """
    if form == "corrected":
        return -(target * torch.log(probabilities + EPSILON)).sum(dim=1).mean()
    return -(probabilities * torch.log(target + EPSILON)).mean()


def segmentation_loss(probabilities: torch.Tensor, target: torch.Tensor, *, form: Form) -> torch.Tensor:
    """Dice plus cross-entropy to the one-hot label."""
    return dice_loss(probabilities, target) + cross_entropy(probabilities, target, form=form)


def distillation_loss(probabilities: torch.Tensor, bank: torch.Tensor, *, form: Form) -> torch.Tensor:
    """Momentum distillation: the client's cross-entropy to the bank's probabilities, both (B, C, ...)."""
    return cross_entropy(probabilities, bank.detach(), form=form)


def history_loss(
    global_features: torch.Tensor, local_features: torch.Tensor, bank_global: torch.Tensor, bank_local: torch.Tensor
) -> torch.Tensor:
    """Mean squared distance of both bottlenecks to the bank's, added up."""
    return functional.mse_loss(global_features, bank_global.detach()) + functional.mse_loss(
        local_features, bank_local.detach()
    )


def contrastive_difference(local_features: torch.Tensor, global_features: torch.Tensor, *, form: Form) -> torch.Tensor:
    """Symmetric Kullback-Leibler divergence between the bottlenecks (B, C, D, H, W); gradients reach both encoders.

    ``corrected``: each channel's map is a distribution over all positions, the divergence is averaged over channels.
    ``published``: over the last axis alone, averaged over elements.
    """
    local, shared = local_features, global_features
    if form == "corrected":
        local, shared = local.flatten(2), shared.flatten(2)
    one, other = torch.log_softmax(local, dim=-1), torch.log_softmax(shared, dim=-1)
    # KL(one | other) + KL(other | one), element by element
    both = (one.exp() - other.exp()) * (one - other)
    divergence = both.sum(dim=-1).mean() if form == "corrected" else both.mean()
    return 0.5 * divergence


def moon_contrast(
    local_features: torch.Tensor, global_features: torch.Tensor, bank_local: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """-log of exp(cos(z, z+) / t) / (exp(cos(z, z+) / t) + exp(cos(z, z-) / t)), averaged over the batch.

    z, z+ and z- are the local, the global and the bank's local bottleneck, averaged over positions. After MOON (Li et
    al., CVPR 2021); an option of ours, not what the published code does.
    """
    z, positive, negative = (features.flatten(2).mean(-1) for features in (local_features, global_features, bank_local))
    likeness = torch.stack(
        [functional.cosine_similarity(z, positive), functional.cosine_similarity(z, negative.detach())], dim=1
    )
    return -torch.log_softmax(likeness / temperature, dim=1)[:, 0].mean()
