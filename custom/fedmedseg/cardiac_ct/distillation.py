"""What the student learns of its teachers: hard answers, as published, or softened probabilities (an option of ours).

The published code declares soft logits and uncertainties and uses neither: its distillation is the supervised loss on
the teachers' answers. ``softened`` is Hinton et al. 2015.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from fedmedseg.cardiac_ct.losses import task_loss


def softened(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over voxels; 0 where they agree.

    Both are logits (B, C, ...); log-probabilities are logits too.
    """
    taught = functional.log_softmax(teacher / temperature, dim=1).flatten(2)
    learned = functional.log_softmax(student / temperature, dim=1).flatten(2)
    divergence = (taught.exp() * (taught - learned)).sum(dim=1)
    return temperature**2 * divergence.mean()


def distilled(
    logits: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    soft: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    *,
    temperature: float,
) -> dict[str, torch.Tensor]:
    """The loss of each task that a batch tells something of, weighted.

    ``targets`` hold labels (real ones, or a teacher's hard answer), ``soft`` a teacher's log-probabilities, which
    count in place of a label. A task in neither has no loss and its head no gradient.
    """
    found = {task: task_loss(logits[task], target) for task, target in targets.items() if task not in soft}
    found |= {task: softened(logits[task], taught, temperature) for task, taught in soft.items()}
    return {task: weights.get(task, 1.0) * loss for task, loss in sorted(found.items())}
