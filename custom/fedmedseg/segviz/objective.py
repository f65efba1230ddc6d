"""Supervised training of a site's network on the organs it marks: losses, Adam, and a learning rate over all rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.optimizer import (
    build_optimizer,
    descend,
    restore_optimizer,
    scheduled_rate,
    set_learning_rate,
)
from fedmedseg.data.volumes import Volumes
from fedmedseg.networks.compute import logits_of, prepare
from fedmedseg.segmentation.batches import LabelledBatches
from fedmedseg.segviz.distillation import distillation_loss
from fedmedseg.segviz.loss import MarginalDice, exclusion_dice


class PartialLabelObjective:
    """Trains ``model`` on labelled crops, as one round of ``total`` steps in all that began ``first_step`` ago.

    ``within`` names the submodule that is trained (empty: all); others keep their parameters, while running
    statistics move wherever the network is in training. ``optimizer`` is the state of an earlier round's, whose moments
    go on. ``teacher`` is distilled from with weight ``distillation``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        training: Volumes,
        experiment: Experiment,
        device: str,
        total: int,
        first_step: int = 0,
        within: str = "",
        optimizer: dict[str, Any] | None = None,
        teacher: nn.Module | None = None,
        distillation: float = 0.0,
        compute: ComputeChoice = SHIPPED,
    ) -> None:
        self.model = model.to(device)
        self.compute = compute
        prepare(self.model, compute)
        self.experiment = experiment
        self.device = device
        self.total, self.first_step = total, first_step
        self.teacher = None if teacher is None else teacher.to(device).eval()
        self.distillation = distillation
        prefix = f"{within}." if within else ""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(prefix))
        self._batches = LabelledBatches(volumes=training, data=experiment.data, segmentation=experiment.segmentation)
        self._dice = MarginalDice()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer([{"params": trained}], experiment.segmentation.optimizer)
        if optimizer is not None:
            restore_optimizer(self._optimizer, optimizer)

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on one batch.

        Raises:
            FedMedSegError: the gradient is not finite (reason LOCAL_DIVERGED); the weights are then untouched.
        """
        section = self.experiment.segmentation
        step = self.first_step + index
        rate = scheduled_rate(section.optimizer, self.experiment.wing.schedule, step, self.total)
        set_learning_rate(self._optimizer, rate)
        # run_steps seeds torch's generator for every step; this makes the batch depend on nothing else
        rng = np.random.default_rng(int(torch.randint(2**62, (1,))))
        images, labels, marks = self._batches.draw(rng)
        self.model.train()
        logits = logits_of(self.model, images, self.compute, self.device)
        terms = self._terms(images, logits, labels.to(self.device), marks)
        loss = torch.stack(list(terms.values())).sum()
        figures = {"loss": float(loss.detach())}
        if len(terms) > 1:
            figures |= {f"loss/{name}": float(term.detach()) for name, term in terms.items()}
        descend(self._optimizer, loss, self.model.parameters(), clip_norm=section.optimizer.clip_norm)
        return figures

    def _terms(
        self, images: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, marks: list[tuple[int, ...] | None]
    ) -> dict[str, torch.Tensor]:
        """What the loss is the sum of, weighted."""
        wing = self.experiment.wing
        terms = {"dice": self._dice(logits, labels, marks)}
        if wing.mode == "one_model" and wing.exclusion:
            terms["exclusion"] = wing.exclusion * exclusion_dice(logits, labels, marks)
        if self.teacher is not None:
            with torch.no_grad():
                taught = logits_of(self.teacher, images, self.compute, self.device)
            terms["distillation"] = self.distillation * distillation_loss(
                logits, taught, labels, marks, temperature=wing.distillation.temperature
            )
        return terms

    def optimizer_state(self) -> dict[str, Any]:
        """What a later round's optimiser goes on from."""
        return self._optimizer.state_dict()

    def state(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, tree: Any) -> None:
        """Continue exactly from what ``state`` returned."""
        self.model.load_state_dict(tree["model"])
        restore_optimizer(self._optimizer, tree["optimizer"])
