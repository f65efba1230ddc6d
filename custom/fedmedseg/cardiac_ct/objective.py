"""The four trainings: a task's CNN, the student, its heads alone, and a new last layer on a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.networks.nets import DynUNet
from torch import nn

from fedmedseg.cardiac_ct.batches import Batch
from fedmedseg.cardiac_ct.distillation import distilled
from fedmedseg.cardiac_ct.losses import deeply_supervised, task_loss
from fedmedseg.cardiac_ct.network import Student, teacher_features, teacher_outputs
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.optimizer import (
    build_optimizer,
    descend,
    restore_optimizer,
    scheduled_rate,
    set_learning_rate,
)
from fedmedseg.core.training_settings import OptimizerSection
from fedmedseg.networks.compute import prepare

Terms = Callable[[Batch], Mapping[str, torch.Tensor]]
"""From a batch to what the loss is the sum of, by task."""
Draw = Callable[[np.random.Generator], Batch]


class TaskObjective:
    """Trains the parameters called ``trained`` by the sum of ``terms`` over batches from ``draw``.

    The optimiser is made anew for each round, as published; ``first_step`` of ``total`` places it in the schedule.
    """

    def __init__(
        self,
        *,
        trained: Mapping[str, nn.Parameter],
        terms: Terms,
        draw: Draw,
        optimizer: OptimizerSection,
        schedule: str,
        total: int,
        first_step: int = 0,
    ) -> None:
        self.trained, self.terms, self.draw = dict(trained), terms, draw
        self.section, self.schedule = optimizer, schedule
        self.total, self.first_step = total, first_step
        self._optimizer = build_optimizer([{"params": list(self.trained.values())}], optimizer)

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on one batch.

        Raises:
            FedMedSegError: the gradient is not finite (reason LOCAL_DIVERGED); the weights are then untouched.
        """
        step = self.first_step + index
        set_learning_rate(self._optimizer, scheduled_rate(self.section, self.schedule, step, self.total))
        # run_steps seeds torch's generator for every step; this makes the batch depend on nothing else
        batch = self.draw(np.random.default_rng(int(torch.randint(2**62, (1,)))))
        terms = self.terms(batch)
        loss = torch.stack(list(terms.values())).sum()
        # a head whose task this batch does not teach has no gradient, and AdamW leaves it alone
        descend(self._optimizer, loss, self.trained.values(), clip_norm=self.section.clip_norm)
        return {"loss": float(loss.detach())}

    def state(self) -> dict[str, Any]:
        """What is trained, and the optimiser."""
        weights = {name: tensor.detach() for name, tensor in self.trained.items()}
        return {"trained": weights, "optimizer": self._optimizer.state_dict()}

    def restore(self, tree: Any) -> None:
        """Continue exactly from what ``state`` returned."""
        with torch.no_grad():
            for name, tensor in tree["trained"].items():
                self.trained[name].copy_(tensor)
        restore_optimizer(self._optimizer, tree["optimizer"])


def teacher_terms(teacher: DynUNet, task: str, *, choice: ComputeChoice, device: str) -> Terms:
    """The CNN's loss: every level of its deep supervision against the full-size label."""
    prepare(teacher, choice)
    teacher.to(device).train()

    def terms(batch: Batch) -> dict[str, torch.Tensor]:
        with choice.autocast(device):
            levels = teacher_outputs(teacher, choice.on_device(batch.inputs, device))
        return {task: deeply_supervised([level.float() for level in levels], batch.targets[task].to(device))}

    return terms


def student_terms(
    student: Student, *, temperature: float, choice: ComputeChoice, device: str, frozen: bool = False
) -> Terms:
    """The student's loss over the tasks that a batch teaches; ``frozen``: its heads alone learn."""
    prepare(student, choice)
    student.to(device)
    student.train(not frozen)

    def terms(batch: Batch) -> dict[str, torch.Tensor]:
        with choice.autocast(device):
            with torch.set_grad_enabled(not frozen):
                features = student.features(choice.on_device(batch.inputs, device))
            logits = {task: student.heads[task](features).float() for task in batch.targets}
        targets = {task: target.to(device) for task, target in batch.targets.items()}
        soft = {task: taught.to(device) for task, taught in batch.soft.items()}
        return distilled(logits, targets, soft, batch.weights, temperature=temperature)

    return terms


def transfer_terms(
    backbone: Student | DynUNet, last: nn.Module, task: str, *, choice: ComputeChoice, device: str
) -> Terms:
    """The loss of a new last layer on a network that does not change."""
    prepare(backbone, choice)
    backbone.to(device).eval()
    last.to(device).train()

    def terms(batch: Batch) -> dict[str, torch.Tensor]:
        images = choice.on_device(batch.inputs, device)
        with choice.autocast(device):
            with torch.no_grad():
                features = (
                    backbone.features(images) if isinstance(backbone, Student) else teacher_features(backbone, images)
                )
            logits = last(features).float()
        return {task: task_loss(logits, batch.targets[task].to(device))}

    return terms
