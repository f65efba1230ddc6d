"""The momentum bank: a second network per site that follows the client and trains beside it, never sent.

It is one rolling model, not a queue: what earlier rounds knew lives on in it. Deviation from the published code: it
starts as a copy of the client, not from weights of its own; and it does follow, where the published loop rebinds a
name and leaves the bank as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.optimizer import descend, restore_optimizer
from fedmedseg.core.training import require_finite
from fedmedseg.fedcrld.config import AdamSection, BankSection
from fedmedseg.fedcrld.network import Outputs, RelocalizationNetwork


class MomentumBank:
    """The bank of one site; after ``begin`` it has an optimiser of its own for one round."""

    def __init__(self, *, client: RelocalizationNetwork, section: BankSection, adam: AdamSection) -> None:
        self.section, self.adam = section, adam
        self.network = copy.deepcopy(client)
        self.begin()

    def begin(self) -> None:
        """A new optimiser, as the client gets one in every round."""
        self.optimizer = build_adam(self.network, self.adam, learning_rate=self.section.learning_rate)

    def become(self, client: nn.Module) -> None:
        """Take over the client's weights: the bank's identity at its start."""
        self.network.load_state_dict(client.state_dict())

    @torch.no_grad()
    def follow(self, client: nn.Module) -> None:
        """theta~ <- m theta~ + (1 - m) theta, for every parameter."""
        own, theirs = dict(self.network.named_parameters()), dict(client.named_parameters())
        names, m = sorted(own), self.section.momentum
        followed: list[torch.Tensor] = [own[name] for name in names]
        torch._foreach_mul_(followed, m)
        torch._foreach_add_(followed, [theirs[name].detach() for name in names], alpha=1.0 - m)

    @torch.no_grad()
    def outputs(self, images: torch.Tensor, choice: ComputeChoice, device: torch.device) -> Outputs:
        """What the client is compared with; no gradient."""
        return outputs_of(self.network, images, choice, device)

    def learn(
        self,
        images: torch.Tensor,
        loss: Callable[[torch.Tensor], torch.Tensor],
        choice: ComputeChoice,
        device: torch.device,
    ) -> float:
        """One step of the bank's own on ``loss(probabilities)`` of the batch; returns the loss.

        Raises:
            FedMedSegError: loss or gradient is not finite (reason LOCAL_DIVERGED); nothing is changed then.
        """
        logits = outputs_of(self.network, images, choice, device).logits
        value = loss(torch.softmax(logits, dim=1))
        figure = require_finite("loss of the bank", float(value.detach()))
        descend(self.optimizer, value, self.network.parameters(), clip_norm=None)
        return figure

    def state(self) -> dict[str, Any]:
        """A checkpoint tree from which ``restore`` continues exactly."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, tree: Any) -> None:
        """Continue from a tree that ``state`` returned."""
        self.network.load_state_dict(tree["network"])
        restore_optimizer(self.optimizer, tree["optimizer"])


def build_adam(network: nn.Module, section: AdamSection, *, learning_rate: float | None = None) -> torch.optim.Adam:
    """Adam over all parameters; ``learning_rate`` in place of the section's where it is given."""
    return torch.optim.Adam(
        network.parameters(),
        lr=section.learning_rate if learning_rate is None else learning_rate,
        betas=section.betas,
        weight_decay=section.weight_decay,
    )


def outputs_of(
    network: RelocalizationNetwork, images: torch.Tensor, choice: ComputeChoice, device: str | torch.device
) -> Outputs:
    """One forward pass in the way of ``choice``; float32 whatever its precision."""
    with choice.autocast(device):
        outputs = network.outputs(choice.on_device(images, device))
    return Outputs(*(tensor.float() for tensor in outputs))
