"""FedEMA's proportion: the further a site's last round moved its model, the more of its own it keeps.

Zhuang et al., "Divergence-aware federated self-supervised learning", ICLR 2022, as its published code does it:

    w = (1 - mu) w_g + mu w_c        mu = min(1, lambda d)        lambda = tau / d_0

d is the mean over layers of the Euclidean distance between the model as a round started and as it ended, d_0 that of
the site's first round. The code's layers are the weights of convolutions, of which these encoders have hardly any; a
layer is here every trained tensor (our reading). Encoder and heads are mixed with the same mu.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def mean_change(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """d: mean over the tensors of ``before`` of the Euclidean distance to that of ``after``."""
    distances = [float(torch.linalg.vector_norm((after[name] - before[name]).float())) for name in sorted(before)]
    return sum(distances) / len(distances)


def scale(change: float, *, tau: float) -> float | None:
    """lambda: tau over the first change; None where nothing changed, so that a later round sets it."""
    return tau / change if change > 0.0 else None


def proportion(change: float, factor: float | None) -> float:
    """mu in [0, 1], the share of the site's own model; 0 where nothing changed."""
    return 0.0 if factor is None else min(1.0, factor * change)
