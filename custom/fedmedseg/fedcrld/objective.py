"""One site's re-localization, step by step: client, bank, and the sum of the loss terms that the study asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.optimizer import descend, restore_optimizer
from fedmedseg.fedcrld.bank import MomentumBank, build_adam, outputs_of
from fedmedseg.fedcrld.batches import EpochBatches
from fedmedseg.fedcrld.config import LossSection
from fedmedseg.fedcrld.losses import (
    contrastive_difference,
    cross_entropy,
    dice_loss,
    distillation_loss,
    history_loss,
    moon_contrast,
    segmentation_loss,
)
from fedmedseg.fedcrld.network import Outputs, RelocalizationNetwork
from fedmedseg.networks.compute import prepare


class RelocalizationObjective:
    """Trains ``network`` beside its bank; implements ``core.training.Objective``.

    A round is ``begin`` and then either ``start`` or, where it continues after a kill, ``restore``. There is no bank
    where no term looks at one.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        network: RelocalizationNetwork,
        batches: EpochBatches,
        shared: tuple[str, ...],
        device: torch.device,
        compute: ComputeChoice,
    ) -> None:
        self.experiment, self.network, self.batches, self.shared = experiment, network, batches, shared
        self.device, self.compute = device, compute
        self.section = experiment.wing
        self._initial = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.bank: MomentumBank | None = None
        if self.section.loss.needs_bank:
            self.bank = MomentumBank(client=network, section=self.section.bank, adam=self.section.optimizer)
            prepare(self.bank.network, compute)
        prepare(network, compute)
        self.begin(first_step=0)

    def begin(self, *, first_step: int) -> None:
        """Place a round in the order of the volumes, with optimisers of its own, as published."""
        self.first_step = first_step
        self.optimizer = build_adam(self.network, self.section.optimizer)
        if self.bank is not None:
            self.bank.begin()

    def start(self, shared: Mapping[str, torch.Tensor], memory: Mapping[str, Any] | None) -> None:
        """The server's tensors over what this site remembers of its last round; without memory, over initial weights.

        A bank that is not remembered starts as a copy of the client.
        """
        private = {} if memory is None else memory["tensors"]
        self.network.load_state_dict({**self._initial, **private, **shared})
        if self.bank is None:
            return
        if memory is not None and memory["bank"] is not None:
            self.bank.network.load_state_dict(memory["bank"])
        else:
            self.bank.become(self.network)

    def memory(self) -> dict[str, Any]:
        """What the site must remember between rounds: all that is not shared, and the bank."""
        # a site that trains alone keeps all of it: nothing comes back from the server
        lent = () if self.section.share == "nothing" else self.shared
        tensors = {name: tensor for name, tensor in self.network.state_dict().items() if name not in lent}
        return {"tensors": tensors, "bank": None if self.bank is None else self.bank.network.state_dict()}

    def step(self, index: int) -> Mapping[str, float]:
        """One step of the client; then the bank follows it and does a step of its own on the same batch.

        Raises:
            FedMedSegError: a loss or a gradient is not finite (reason LOCAL_DIVERGED).
        """
        # run_steps seeds torch's generator for every step; this makes the batch depend on nothing else
        rng = np.random.default_rng(int(torch.randint(2**62, (1,))))
        images, labels = self.batches.draw(self.first_step + index, rng)
        target = one_hot(labels.to(self.device), self.experiment.data.classes)
        self.network.train()
        outputs = outputs_of(self.network, images, self.compute, self.device)
        history = None if self.bank is None else self.bank.outputs(images, self.compute, self.device)
        terms = weighted_terms(self.section.loss, outputs, target, history)
        loss = torch.stack(list(terms.values())).sum()
        figures = {"loss": float(loss.detach())}
        # not clipped, as published
        if not descend(self.optimizer, loss, self.network.parameters(), clip_norm=None):
            return figures
        figures |= {f"loss/{name}": float(term.detach()) for name, term in terms.items()}
        if self.bank is not None:
            self.bank.follow(self.network)
            figures["loss/bank"] = self.bank.learn(
                images,
                lambda probabilities: segmentation_loss(probabilities, target, form=self.section.loss.form),
                self.compute,
                self.device,
            )
        return figures

    def trained(self) -> dict[str, torch.Tensor]:
        """Copies of the shared tensors as this site leaves them, on the CPU: all that crosses the wire."""
        tensors = self.network.state_dict()
        return {name: tensors[name].detach().cpu().clone() for name in self.shared}

    def state(self) -> dict[str, Any]:
        """Client and bank with their optimisers."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": None if self.bank is None else self.bank.state(),
        }

    def restore(self, tree: Any) -> None:
        """Continue exactly from what ``state`` returned."""
        self.network.load_state_dict(tree["network"])
        restore_optimizer(self.optimizer, tree["optimizer"])
        if self.bank is not None:
            self.bank.restore(tree["bank"])


def weighted_terms(
    section: LossSection, outputs: Outputs, target: torch.Tensor, bank: Outputs | None
) -> dict[str, torch.Tensor]:
    """The terms that ``section`` asks for, each with its weight; their sum is the loss.

    ``target`` is the one-hot label (B, C, X, Y, Z), ``bank`` what the bank says of the same batch.
    """
    probabilities = torch.softmax(outputs.logits, dim=1)
    terms = {
        "dice": dice_loss(probabilities, target),
        "cross_entropy": cross_entropy(probabilities, target, form=section.form),
    }
    shared, local = outputs.global_features, outputs.local_features
    if section.contrast == "difference":
        terms["contrast"] = section.contrast_weight * contrastive_difference(local, shared, form=section.form)
    if bank is None:
        return terms
    if section.distillation_weight:
        distilled = distillation_loss(probabilities, torch.softmax(bank.logits, dim=1), form=section.form)
        terms["distillation"] = section.distillation_weight * distilled
    if section.history_weight:
        terms["history"] = section.history_weight * history_loss(
            shared, local, bank.global_features, bank.local_features
        )
    if section.contrast == "moon":
        repelled = moon_contrast(local, shared, bank.local_features, temperature=section.temperature)
        terms["contrast"] = section.contrast_weight * repelled
    return terms


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, 1, X, Y, Z) int64 to (B, classes, X, Y, Z) float32; a class that is absent has a channel too."""
    return functional.one_hot(labels.squeeze(1), classes).movedim(-1, 1).float()
