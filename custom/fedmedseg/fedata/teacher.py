"""The teacher: an exponential moving average of the site's own encoder, kept at the site."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn


def momentum(step: int, total: int, *, start: float, end: float) -> float:
    """Momentum at global step ``step`` (0-based) of ``total``: half a cosine from ``start`` to ``end``.

    Counted over all rounds, so it does not fall back when a round begins.
    """
    return end - (end - start) * 0.5 * (1.0 + math.cos(math.pi * step / max(1, total - 1)))


def make_teacher(encoder: nn.Module) -> nn.Module:
    """A copy of the student's encoder without gradients, in evaluation mode (no drop path)."""
    teacher = copy.deepcopy(encoder)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: Mapping[str, torch.Tensor], student: Mapping[str, torch.Tensor], m: float) -> None:
    """phi_T <- m phi_T + (1 - m) phi_S, in place, for every tensor of ``teacher``."""
    names = sorted(teacher)
    followed = [teacher[name] for name in names]
    torch._foreach_mul_(followed, m)
    torch._foreach_add_(followed, [student[name].detach() for name in names], alpha=1.0 - m)


@torch.no_grad()
def relative_gap(teacher: Mapping[str, torch.Tensor], student: Mapping[str, torch.Tensor]) -> float:
    """Distance of student from teacher over the teacher's norm, over all tensors of ``teacher``: 0 is equal.

    A teacher that lags far behind a student the server has moved gives stale targets.
    """
    difference = sum(float((student[name] - teacher[name]).square().sum()) for name in sorted(teacher))
    norm = sum(float(teacher[name].square().sum()) for name in sorted(teacher))
    return math.sqrt(difference / max(norm, 1e-12))
