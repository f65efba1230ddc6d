"""The teacher: an exponential moving average of the site's own encoder, kept at the site."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn

from fedmedseg.fedata.mixing_config import Schedule

TEACHER = "teacher."
"""Beginning of the names under which a teacher's tensors travel with ``teacher_sync: aggregate``."""


def momentum(step: int, total: int, *, start: float, end: float, schedule: Schedule = "cosine") -> float:
    """Momentum at global step ``step`` (0-based) of ``total``: ``start`` at the first, ``end`` at the last.

    ``cosine`` is half a cosine, ``linear`` a straight line (data2vec, Baevski et al., 2022), ``constant`` is
    ``start``. Counted over all rounds, so it does not fall back when a round begins.
    """
    if schedule == "constant":
        return start
    last = max(1, total - 1)
    if schedule == "linear":
        return start + (end - start) * (step / last)
    return end - (end - start) * 0.5 * (1.0 + math.cos(math.pi * step / last))


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


def to_wire(teacher: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of a teacher's tensors on the CPU, under their names on the wire."""
    return {f"{TEACHER}{name}": tensor.detach().cpu().clone() for name, tensor in teacher.items()}


def from_wire(shared: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Shared tensors parted into the student's and the teacher's, each by their names in the student; not copied."""
    student = {name: tensor for name, tensor in shared.items() if not name.startswith(TEACHER)}
    teacher = {name.removeprefix(TEACHER): tensor for name, tensor in shared.items() if name.startswith(TEACHER)}
    return student, teacher
