"""Conditional distillation (ConDistFL): what a case does not mark is learned from the model of the round's start.

Wang et al., ConDistFL: conditional distillation for federated learning from partially annotated data, MICCAI workshops
2023 (DeCaF); code in NVIDIA FLARE, research/condist-fl. The form of the loss follows that code's description;
deviation: its soft Dice has squared sums below, so that it is 0 where student and teacher agree.
"""

from __future__ import annotations

import torch

from fedmedseg.segviz.loss import EPSILON, Marks, alike


def conditional(logits: torch.Tensor, labels: tuple[int, ...], temperature: float) -> torch.Tensor:
    """Probabilities of background and every organ not among ``labels``, given that it is none of ``labels``.

    ``logits`` (B, C, ...) -> (B, C - len(labels), ...): softmax at ``temperature``, over one less the probability of
    ``labels``.
    """
    probabilities = torch.softmax(logits / temperature, dim=1)
    kept = [channel for channel in range(logits.shape[1]) if channel not in labels]
    marked = probabilities[:, list(labels)].sum(dim=1, keepdim=True)
    return probabilities[:, kept] / (1.0 - marked + EPSILON)


def elsewhere(teacher: torch.Tensor, target: torch.Tensor, labels: tuple[int, ...]) -> torch.Tensor:
    """1 at voxels that neither the truth nor the teacher's choice calls one of ``labels``, else 0: (B, 1, ...)."""
    own = torch.tensor(labels, device=target.device)
    chosen = teacher.argmax(dim=1, keepdim=True)
    return (~(torch.isin(target, own) | torch.isin(chosen, own))).to(teacher.dtype)


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, marks: Marks, *, temperature: float
) -> torch.Tensor:
    """Masked soft Dice between conditional probabilities, mean over items and their classes; 0 where all is marked.

    ``student`` and ``teacher`` are logits (B, C, ...), ``target`` (B, 1, ...).
    """
    total = student.new_zeros(())
    for labels, items in alike(marks, student.shape[1]):
        if len(labels) == student.shape[1] - 1:
            continue
        mask = elsewhere(teacher[items], target[items], labels)
        ours = (conditional(student[items], labels, temperature) * mask).flatten(2)
        theirs = (conditional(teacher[items], labels, temperature) * mask).flatten(2)
        shared = 2.0 * (ours * theirs).sum(dim=2) + EPSILON
        both = (ours**2).sum(dim=2) + (theirs**2).sum(dim=2) + EPSILON
        total = total + (1.0 - shared / both).mean(dim=1).sum() / len(student)
    return total


def weight_of(first: float, last: float, round: int, rounds: int) -> float:
    """The loss's weight in ``round`` (from 0) of ``rounds``: ``first``, growing linearly to ``last``.

    >>> [weight_of(0.0, 1.0, round, 3) for round in range(3)]
    [0.0, 0.5, 1.0]
    """
    return first + (last - first) * round / max(1, rounds - 1)
