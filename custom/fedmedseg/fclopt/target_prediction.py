"""The target network after a round, worked out from the online networks instead of being sent.

If a site's online weights move in a straight line during its T steps, the average xi <- m xi + (1 - m) theta that its
target follows is, exactly,

    xi_c' = m^T xi + (1 - m^T) theta + beta (theta_c' - theta)        beta = 1 - m (1 - m^T) / (T (1 - m))

and the mean over sites of equal T and m needs nothing but the mean of the online networks:

    closed form:  xi' = m^T xi + (1 - m^T - beta) theta + beta theta'
    naive:        xi' = m^T xi + (1 - m^T) theta'

with theta and xi as the round began with them and theta' as the server returned it. Our reconstruction: the paper's
abstract names the prediction, its formulas were not available.

Every party must come to the same bits. So all of it is float64, one product and one sum at a time (numpy contracts no
product and sum into one rounding), in the sorted order of names, from tensors as they were transported; and is rounded
to float32 once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

Tensors = Mapping[str, torch.Tensor]
Arrays = dict[str, np.ndarray]
Formula = Literal["closed_form", "naive"]


def follow_weight(momentum: float, steps: int) -> float:
    """m^T, what is left of the target after ``steps`` steps: a product, as libraries round powers differently."""
    left = 1.0
    for _ in range(steps):
        left *= momentum
    return left


def beta(momentum: float, steps: int) -> float:
    """Share of a straight line's end in the average along it; 1 with momentum 0. ``momentum`` is below 1."""
    return 1.0 - momentum * (1.0 - follow_weight(momentum, steps)) / (steps * (1.0 - momentum))


def coefficients(formula: Formula, momentum: float, steps: int) -> tuple[float, float, float]:
    """Weights of xi and theta before the round, and of theta after it; they sum to 1."""
    left = follow_weight(momentum, steps)
    if formula == "naive":
        return left, 0.0, 1.0 - left
    share = beta(momentum, steps)
    return left, 1.0 - left - share, share


def predict(
    target: Tensors, before: Tensors, after: Tensors, *, formula: Formula, momentum: float, steps: int
) -> Arrays:
    """The open-loop prediction, float64, of every tensor of ``target``.

    Args:
        target: xi as the round began.
        before: theta as the round began.
        after: theta as the server returned it.
        formula: which of the two.
        momentum: m.
        steps: T, the same at every site.
    """
    of_target, of_before, of_after = coefficients(formula, momentum, steps)
    found: Arrays = {}
    for name in sorted(target):
        total = wide(target[name]) * of_target
        if of_before:
            total = total + wide(before[name]) * of_before
        found[name] = total + wide(after[name]) * of_after
    return found


def wide(tensor: torch.Tensor) -> np.ndarray:
    """A float64 array on the CPU."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def narrowed(arrays: Mapping[str, np.ndarray], like: Tensors) -> dict[str, torch.Tensor]:
    """Tensors of the type of ``like``, rounded once."""
    return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])).to(like[name].dtype) for name in sorted(arrays)}
