"""One round of local training: supervised steps, with what the strategy adds to the loss or takes off the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.optimizer import build_sgd, scheduled_rate, set_learning_rate
from fedmedseg.fedavg.controls import ControlVariates
from fedmedseg.fedavg.parts import Proximal
from fedmedseg.segmentation.objective import SupervisedObjective


def rate(experiment: Experiment, step: int) -> float:
    """A site's rate at step ``step`` (from 0) of ``segmentation.steps``: warm-up, then as ``schedule`` says."""
    section = experiment.wing.sgd or experiment.segmentation.optimizer
    return scheduled_rate(section, experiment.wing.schedule, step, experiment.segmentation.steps)


class RoundObjective(SupervisedObjective):
    """``SupervisedObjective`` whose loss may hold the network near ``received`` and whose steps may be corrected.

    ``received`` is the network as it came, and stays so; ``proximal`` is the penalty for the distance to it (fedprox,
    and ditto's own network), ``controls`` are SCAFFOLD's. Other arguments as for ``SupervisedObjective``.
    """

    def __init__(
        self,
        *,
        received: nn.Module | None = None,
        proximal: Proximal | None = None,
        controls: ControlVariates | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(pretrained=(), validation=None, **settings)
        self.received = received
        self.proximal = proximal
        self.controls = controls
        self._rate = 0.0

    def make_optimizer(self) -> torch.optim.Optimizer:
        """SGD where the study says so, else AdamW."""
        sgd = self.experiment.wing.sgd
        return super().make_optimizer() if sgd is None else build_sgd(self.model.parameters(), sgd)

    def set_rates(self, index: int) -> None:
        """One rate for the whole network."""
        self._rate = rate(self.experiment, index)
        set_learning_rate(self._optimizer, self._rate)

    @property
    def clip_norm(self) -> float:
        """Largest norm of a step's gradient."""
        section = self.experiment.wing.sgd or self.experiment.segmentation.optimizer
        return float(section.clip_norm)

    def loss_of(
        self, logits: torch.Tensor, labels: torch.Tensor, annotated: Sequence[tuple[int, ...] | None]
    ) -> torch.Tensor:
        """Segmentation loss, and the penalty where the strategy has one."""
        loss = super().loss_of(logits, labels, annotated)
        if self.proximal is None:
            return loss
        assert self.received is not None, "a penalty needs what it is the distance to"
        return loss + self.proximal(self.model, self.received)

    def after_step(self) -> None:
        """SCAFFOLD's correction."""
        if self.controls is not None:
            self.controls.correct(self._rate)

    def state(self) -> dict[str, Any]:
        """Weights, optimiser, and how far the control variates came."""
        tree = super().state()
        return tree if self.controls is None else {**tree, "controls": self.controls.state()}

    def restore(self, tree: Any) -> None:
        """Continue exactly from what ``state`` returned."""
        super().restore(tree)
        if self.controls is not None:
            self.controls.restore(tree["controls"])
