"""Supervised training of one network: Dice and cross-entropy, AdamW, validation that keeps the best weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.optimizer import build_optimizer, descend, learning_rate, restore_optimizer, set_learning_rate
from fedmedseg.data.volumes import Volumes
from fedmedseg.networks.compute import logits_of, prepare
from fedmedseg.segmentation.batches import LabelledBatches
from fedmedseg.segmentation.evaluation import validate
from fedmedseg.segmentation.loss import SegmentationLoss

logger = logging.getLogger(__name__)


class SupervisedObjective:
    """Trains ``model`` on labelled crops for ``experiment.segmentation.steps`` steps.

    ``pretrained`` are the state-dict names of tensors that come from pretraining (empty from scratch).
    ``validation`` None (whoever passes it says so), or a validation set in which no structure can be scored
    (told at the end): the last weights count as the best. ``first_step`` places a round of a federated training in
    the schedules, which run over the steps of all rounds. ``compute`` and ``inference`` are how the network is computed
    in training and in validation; without the second, as in training but in float32.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        training: Volumes,
        validation: Volumes | None,
        experiment: Experiment,
        pretrained: Collection[str],
        device: str,
        aborted: Callable[[], bool] = lambda: False,
        first_step: int = 0,
        compute: ComputeChoice = SHIPPED,
        inference: ComputeChoice | None = None,
    ) -> None:
        self.first_step = first_step
        self.model = model.to(device)
        self.compute = compute
        self.inference = inference
        prepare(self.model, compute)
        self.training = training
        self.validation = validation
        self.experiment = experiment
        self.pretrained = frozenset(pretrained)
        self.device = device
        self.aborted = aborted
        self.best_dice: float | None = None
        """Highest validation Dice so far (mean over structures), or None."""
        self._best: dict[str, torch.Tensor] | None = None
        self._section = experiment.segmentation
        self._batches = LabelledBatches(volumes=training, data=experiment.data, segmentation=experiment.segmentation)
        self._loss = SegmentationLoss()
        self._optimizer = self.make_optimizer()

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on one batch, and validation where it is due.

        Raises:
            FedMedSegError: the gradient is not finite (reason LOCAL_DIVERGED); the weights are then untouched.
            Aborted: the federation asked to stop during a validation.
        """
        section = self._section
        self.set_rates(self.first_step + index)
        # run_steps seeds torch's generator for every step; this makes the batch depend on nothing else
        rng = np.random.default_rng(int(torch.randint(2**62, (1,))))
        images, labels, annotated = self._batches.draw(rng)
        self.model.train()
        logits = logits_of(self.model, images, self.compute, self.device)
        loss = self.loss_of(logits, labels.to(self.device), annotated)
        value = float(loss.detach())
        if not descend(self._optimizer, loss, self.model.parameters(), clip_norm=self.clip_norm):
            return {"loss": value}
        self.after_step()
        if (index + 1) % section.validate_every == 0 or index + 1 == section.steps:
            self._validate(index + 1)
        return {"loss": value}

    @property
    def clip_norm(self) -> float:
        """Largest norm of a step's gradient."""
        return self._section.optimizer.clip_norm

    def make_optimizer(self) -> torch.optim.Optimizer:
        """What takes the steps; made once."""
        return build_optimizer(_groups(self.model, self.pretrained), self._section.optimizer)

    def loss_of(
        self, logits: torch.Tensor, labels: torch.Tensor, annotated: Sequence[tuple[int, ...] | None]
    ) -> torch.Tensor:
        """What one step goes down; arguments as ``SegmentationLoss`` takes them."""
        return self._loss(logits, labels, annotated)

    def after_step(self) -> None:
        """Called when the weights have moved; a system's own objective may move them further."""

    def finish(self) -> None:
        """Give the model its best weights; without any validation Dice it keeps the last ones."""
        if self._best is None:
            if self.validation is not None:
                logger.info("no structure could be validated: the last weights are kept")
            return
        self.model.load_state_dict(self._best)

    def state(self) -> dict[str, Any]:
        """Weights, optimiser, and the best weights with their Dice."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "best_dice": self.best_dice,
        }

    def restore(self, tree: Any) -> None:
        """Continue exactly from what ``state`` returned."""
        self.model.load_state_dict(tree["model"])
        restore_optimizer(self._optimizer, tree["optimizer"])
        self._best = tree["best"]
        self.best_dice = tree["best_dice"]

    def set_rates(self, index: int) -> None:
        """Give the optimiser its rates of step ``index`` (from 0) of the whole training."""
        section = self._section
        factor = encoder_rate_factor(
            section.encoder_rate_factor, index, section.steps, share=section.encoder_rate_share
        )
        for group in self._optimizer.param_groups:
            if group["pretrained"]:
                group["rate_factor"] = factor
        set_learning_rate(self._optimizer, learning_rate(self._section.optimizer, index, self._section.steps))

    def _validate(self, done: int) -> None:
        if self.validation is None:
            return
        dice = validate(
            self.model,
            volumes=self.validation,
            experiment=self.experiment,
            device=self.device,
            choice=self.inference,
            aborted=self.aborted,
        )
        logger.debug("validation Dice after %d steps: %.4f", done, dice)
        # of equals the longer trained, so that a flat start at 0 does not win
        if not math.isnan(dice) and (self.best_dice is None or dice >= self.best_dice):
            self.best_dice = dice
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}


def encoder_rate_factor(factor: float, index: int, steps: int, *, share: float) -> float:
    """``factor`` during the first ``share`` of ``steps`` (0-based ``index``), then 1."""
    return factor if index < math.ceil(share * steps - 1e-9) else 1.0


def _groups(model: nn.Module, pretrained: Collection[str]) -> Sequence[dict[str, object]]:
    named = dict(model.named_parameters())
    unknown = sorted(set(pretrained) - set(model.state_dict()))
    if unknown:
        raise ConfigurationError(
            "pretrained", got=f"{len(unknown)} unknown, first {unknown[0]}", expected="tensors of the network"
        )
    sides = {side: [tensor for name, tensor in named.items() if (name in pretrained) is side] for side in (False, True)}
    return [{"params": tensors, "pretrained": side} for side, tensors in sides.items() if tensors]
