"""Watches the features for collapse, where they all come to lie in one place and tell slices apart no more."""

from __future__ import annotations

import math

import torch


def feature_spread(features: torch.Tensor) -> float:
    """Mean over dimensions of the standard deviation of features (N, width) of length 1, times the root of ``width``.

    1 where they lie evenly on the sphere, 0 where they are all the same; 0 too for fewer than two.
    """
    if len(features) < 2:
        return 0.0
    spread = features.detach().double().std(dim=0, correction=0).mean()
    return float(spread) * math.sqrt(features.shape[1])
