"""One site's learning without negatives: slices, two views of each, online and target network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedmedseg.core.ahead import Ahead
from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.optimizer import build_sgd, descend, restore_optimizer, set_learning_rate
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.training import require_finite
from fedmedseg.data.slices import draw_pairs
from fedmedseg.fclopt.config import RateSection
from fedmedseg.fclopt.losses import structural_loss, structural_partners, symmetric_loss
from fedmedseg.fclopt.network import (
    BootstrapNetwork,
    TargetNetwork,
    copy_into,
    floating,
    follow,
    parameters_of,
)
from fedmedseg.networks.compute import prepare
from fedmedseg.networks.timing import StepTrial
from fedmedseg.segmentation.slice_pretraining import feature_spread

if TYPE_CHECKING:
    from fedmedseg.data.sampling import ImageSource


def round_rate(section: RateSection, number: int, rounds: int) -> float:
    """Learning rate of round ``number`` (from 0) of ``rounds``."""
    if section.schedule == "constant":
        return section.learning_rate
    return section.learning_rate * 0.5 * (1.0 + math.cos(math.pi * number / rounds))


class BootstrapObjective:
    """Trains the online network beside its target; implements ``core.training.AheadObjective``.

    A round is ``begin`` and then either ``start`` or, where it continues after a kill, ``restore``.
    """

    def __init__(self, *, experiment: Experiment, volumes: ImageSource, device: torch.device) -> None:
        self.experiment, self.volumes, self.device = experiment, volumes, device
        self.section = experiment.wing
        self.online = BootstrapNetwork(experiment=experiment).to(device)
        self.target = TargetNetwork(online=self.online).to(device)
        self.batches = Ahead(partial(_batch, volumes, experiment))
        self.use(SHIPPED)
        self.begin(round=0, rounds=1)

    def use(self, choice: ComputeChoice) -> None:
        """Compute both networks in that way from now on; weights, moments, averages and losses stay float32."""
        self.compute = choice
        for network in (self.online, self.target):
            prepare(network, choice)

    def trial(self) -> StepTrial:
        """This objective's forward and backward on noise of a batch's shape, to be timed; it is spent by that."""
        count = self.section.volumes_per_step * self.section.parts
        views = [torch.randn(count, 1, *self.experiment.data.crop, device=self.device) for _ in range(2)]
        partners: list[int | None] = [(place + 1) % count for place in range(count)]
        self._train()

        def loss(choice: ComputeChoice) -> torch.Tensor:
            self.compute = choice
            return self._loss(views[0], views[1], partners)[0]

        seed = derive_seed(self.experiment.seed, "compute", "pretext")
        return StepTrial(networks=[self.online, self.target], loss=loss, seed=seed)

    def begin(self, *, round: int, rounds: int) -> None:
        """Place a round in the schedule, with an optimiser of its own: momentum of the model before the server moved it
        belongs to that one.
        """
        self.batches.forget()
        # every step sets the rate
        self.rate = round_rate(self.section.optimizer, round, rounds)
        self.optimizer = build_sgd(self.online.parameters(), self.section.optimizer)

    def start(self, online: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
        """Both networks as a round starts with them, by their names on the wire.

        The target's running statistics are the online network's, whose mean over sites came with it.
        """
        copy_into(self.online, online)
        copy_into(self.target, {**online, **target})

    def expect(self, seed: int) -> None:
        """Make the batch of the step with this seed, beside the step that comes before it."""
        self.batches.expect(seed)

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on fresh slices; then the target follows.

        Raises:
            FedMedSegError: loss or gradient are not finite (reason LOCAL_DIVERGED); both networks are then untouched.
        """
        (first, second), partners = self.batches.next()
        set_learning_rate(self.optimizer, self.rate)
        self._train()
        loss, figures = self._loss(first, second, partners)
        require_finite("loss", float(loss.detach()))
        descend(self.optimizer, loss, self.online.parameters(), clip_norm=None)
        follow(self.target, self.online, self.section.momentum)
        return {"loss": float(loss.detach()), **figures}

    def trained(self) -> dict[str, torch.Tensor]:
        """Copies of the online network's floating-point tensors on the CPU, by their names on the wire."""
        return {name: tensor.detach().cpu().clone() for name, tensor in floating(self.online).items()}

    def followed(self) -> dict[str, torch.Tensor]:
        """Copies of the target network's parameters on the CPU, by their names in the online network."""
        return {name: tensor.detach().cpu().clone() for name, tensor in parameters_of(self.target).items()}

    def state(self) -> dict[str, Any]:
        """Both networks and the optimiser."""
        return {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, tree: Any) -> None:
        """Continue exactly from what ``state`` returned."""
        self.online.load_state_dict(tree["online"])
        self.target.load_state_dict(tree["target"])
        restore_optimizer(self.optimizer, tree["optimizer"])

    def _train(self) -> None:
        self.online.train()
        self.target.train()

    def _loss(
        self, first: torch.Tensor, second: torch.Tensor, partners: list[int | None]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of two views (B, 1, *crop) of the same slices, and figures of it."""
        first, second = (self.compute.on_device(view, self.device) for view in (first, second))
        with self.compute.autocast(self.device):
            with torch.no_grad():
                first_targets, second_targets = self.target(first), self.target(second)
            projections, first_predicted = self.online(first)
            _, second_predicted = self.online(second)
        loss = symmetric_loss(first_predicted, second_predicted, first_targets, second_targets)
        figures = {"feature_std": feature_spread(projections)}
        structural = structural_loss(first_predicted, second_targets, partners)
        if structural is not None:
            loss = loss + self.section.structural_weight * structural
            figures["loss/structural"] = float(structural.detach())
        return loss, figures


def _batch(
    volumes: ImageSource, experiment: Experiment, seed: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], list[int | None]]:
    """Two views of each slice of a step, and for each slice the place of another of its part."""
    rng, section = np.random.default_rng(seed), experiment.wing
    slices, views = draw_pairs(
        volumes,
        rng,
        experiment.data,
        volumes_per_step=section.volumes_per_step,
        parts=section.parts,
        rule=section.partition,
    )
    partners: list[int | None] = []
    if section.structural_weight:
        partners = structural_partners([at.volume for at in slices], [at.part for at in slices], rng)
    return views, partners
