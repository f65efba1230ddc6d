"""Masked self-distillation over prototypes: iBOT's head, centre and cross-entropy (Zhou et al., 2022; SMIT)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class PrototypeHead(nn.Module):
    """Tokens (..., width) to cosines with every prototype (..., prototypes).

    Three linear layers with GELU, a bottleneck of unit length, and prototypes of unit length: a weight-normed last
    layer whose magnitude stays 1. Tokens are normalised without affine parameters first, because Swin's leave their
    last block unnormalised (our addition).
    """

    def __init__(self, *, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores in -1..1."""
        directions = functional.normalize(self.mlp(functional.layer_norm(tokens, (self.width,))), dim=-1)
        return functional.linear(directions, functional.normalize(self.prototypes, dim=-1))


def teacher_temperature(position: int, total: int, *, start: float, end: float, warmup: float) -> float:
    """Temperature at global step ``position`` (0-based) of ``total``: linear over the share ``warmup``, then ``end``.

    iBOT counts 30 epochs; a share of all rounds' steps means the same in studies of any length (reconstruction).
    """
    ramp = warmup * total
    return end if position >= ramp else start + (end - start) * position / ramp


def prototype_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    centre: torch.Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> torch.Tensor:
    """Cross-entropy of softmax((z_T - c) / tau_T) against softmax(z_S / tau_S), averaged over tokens.

    ``student`` and ``teacher`` are (..., prototypes), ``centre`` (prototypes,). No gradient reaches the teacher.
    """
    target = ((teacher.detach().float() - centre) / teacher_temperature).softmax(dim=-1)
    return -(target * (student.float() / student_temperature).log_softmax(dim=-1)).sum(dim=-1).mean()


def mean_scores(scores: torch.Tensor) -> torch.Tensor:
    """Mean of (..., prototypes) over everything but the prototypes: what the centre follows."""
    return scores.detach().float().flatten(0, -2).mean(dim=0)


def next_centre(centre: torch.Tensor, mean: torch.Tensor, *, momentum: float) -> torch.Tensor:
    """c <- m c + (1 - m) mean of the teacher's scores."""
    return momentum * centre + (1.0 - momentum) * mean
