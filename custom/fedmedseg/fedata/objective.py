"""One site's masked self-distillation: crops, student, teacher, mixing and everything a round must remember."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.optimizer import build_optimizer, learning_rate, set_learning_rate
from fedmedseg.core.training import require_finite
from fedmedseg.fedata.distillation import distillation_target, masked_distillation_loss
from fedmedseg.fedata.masking import random_masks
from fedmedseg.fedata.mixing import learn_mixture
from fedmedseg.fedata.monitor import token_spread
from fedmedseg.fedata.network import MaskedEncoder
from fedmedseg.fedata.teacher import make_teacher, momentum, relative_gap, update_teacher

SEEDS = 2**62


class MaskedDistillationObjective:
    """The pretext of one site, step by step; implements ``core.training.Objective``.

    ``crop(volume, rng)`` gives a random crop (1, *crop) of one of ``volumes`` volumes. A round is ``begin`` and
    then either ``initialise`` or, where it continues after a kill, ``restore``.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        volumes: int,
        crop: Callable[[int, np.random.Generator], torch.Tensor],
        device: torch.device,
    ) -> None:
        self.experiment, self.volumes, self.crop, self.device = experiment, volumes, crop, device
        self.section = experiment.wing
        self.network = MaskedEncoder(experiment=experiment).to(device)
        self.teacher = make_teacher(self.network.encoder)
        self.begin(round=0, rounds=1)

    def begin(self, *, round: int, rounds: int) -> None:
        """Place a round in the stage's schedules, with an optimiser of its own.

        Moments of AdamW belong to the model they were gathered on, which the server has just moved; they are not
        carried over. Learning rate and momentum go on where the last round ended.
        """
        self.first_step, self.total = round * self.section.local_steps, rounds * self.section.local_steps
        self.optimizer = build_optimizer(_decay_groups(self.network.trained()), self.section.optimizer)
        self.mixing: dict[str, torch.Tensor] | None = None
        self.reference: float | None = None
        self.figures: dict[str, float] = {}

    def initialise(
        self,
        shared: Mapping[str, torch.Tensor],
        personal: Mapping[str, Any] | None,
        *,
        aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Personal initialisation of a round from the server's tensors and what the site remembers (see ``memory``).

        Without a memory the student is the server's and the teacher a copy of it.
        """
        self.network.load_shared(shared)
        if personal is None:
            _copy(self._teacher_tensors(), shared)
        else:
            _copy(self._teacher_tensors(), personal["teacher"])
            self.mixing, self.reference = self._on_device(personal["mixing"]), personal["reference"]
            if self.section.client_mix == "ala_attn":
                self._mix(shared, personal["tensors"], aborted)
        self.figures["student_teacher_gap"] = relative_gap(self._teacher_tensors(), self.network.trained())

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on fresh crops and masks; returns ``loss`` and ``teacher_std``.

        Raises:
            FedMedSegError: loss or gradient are not finite (reason LOCAL_DIVERGED); student and teacher are then
                untouched, so that a diverged step can reach neither the site's memory nor its next round.
        """
        position = self.first_step + index
        set_learning_rate(self.optimizer, learning_rate(self.section.optimizer, position, self.total))
        rng = np.random.default_rng(int(torch.randint(SEEDS, (1,))))
        chosen = rng.choice(
            self.volumes, size=self.section.volumes_per_step, replace=self.volumes < self.section.volumes_per_step
        )
        self.network.train()
        loss, spread = self._loss(*self._batch(chosen, rng))
        require_finite("loss", float(loss.detach()))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = self.network.trained()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), self.section.optimizer.clip_norm)
        require_finite("gradient norm", float(norm))
        self.optimizer.step()
        ema = self.section.ema
        update_teacher(self._teacher_tensors(), trained, momentum(position, self.total, start=ema.start, end=ema.end))
        if self.reference is None:
            self.reference = spread
        return {"loss": float(loss.detach()), "teacher_std": spread}

    def memory(self) -> dict[str, Any]:
        """What the site keeps for its next round: student, teacher, mixing weights, reference of the monitor."""
        return {
            "tensors": self.network.shared(),
            "teacher": {name: tensor.detach() for name, tensor in self._teacher_tensors().items()},
            "mixing": self.mixing,
            "reference": self.reference,
        }

    def state(self) -> Any:
        """The memory, the optimiser and the round's figures: all that a killed round needs to go on."""
        return {**self.memory(), "optimizer": self.optimizer.state_dict(), "figures": self.figures}

    def restore(self, tree: Any) -> None:
        """Go on from ``state``."""
        self.network.load_shared(tree["tensors"])
        _copy(self._teacher_tensors(), tree["teacher"])
        self.optimizer.load_state_dict(tree["optimizer"])
        self.mixing, self.reference = self._on_device(tree["mixing"]), tree["reference"]
        self.figures = dict(tree["figures"])

    def _loss(self, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Pretext loss of a batch and the spread of the teacher's tokens; the teacher sees whole crops."""
        with torch.no_grad():
            hidden = self.network.hidden(self.teacher, images)
        prediction = self.network(images, masks)
        loss = masked_distillation_loss(
            prediction, distillation_target(hidden), masks, beta=self.section.smooth_l1_beta
        )
        return loss, token_spread(hidden[-1])

    def _batch(
        self, chosen: Sequence[int] | np.ndarray, rng: np.random.Generator, masks: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops (B, 1, *crop) of the chosen volumes, several per volume, and a mask for each."""
        crops = [self.crop(int(volume), rng) for volume in chosen for _ in range(self.section.crops_per_volume)]
        drawn = random_masks(
            len(crops),
            self.experiment.data.crop,
            unit=self.section.mask_unit,
            ratio=self.section.mask_ratio,
            generator=masks,
        )
        return torch.stack(crops).to(self.device), drawn.to(self.device)

    def _mix(
        self, shared: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], aborted: Callable[[], bool]
    ) -> None:
        """Replace the student's attention tensors by the learned mixture; nothing where own and shared are equal.

        Crops and masks are those of one seed in every pass, and drop path is off: otherwise their noise, not the
        choice between the two models, would move the weights.
        """
        trained = self.network.trained()
        scope = self.network.attention()
        given = {name: shared[name].to(self.device) for name in scope}
        local = {name: own[name].to(self.device) for name in scope}
        if all(torch.equal(given[name], local[name]) for name in scope):
            return
        seed = int(torch.randint(SEEDS, (1,)))
        sample = np.random.default_rng(seed).permutation(self.volumes)
        sample = sample[: max(1, math.ceil(self.section.ala.sample_share * self.volumes - 1e-9))]
        size = self.section.volumes_per_step
        batches = [sample[start : start + size] for start in range(0, len(sample), size)]
        self.network.eval()

        def gradient(number: int, tensors: Mapping[str, torch.Tensor]) -> tuple[float, Mapping[str, torch.Tensor]]:
            self.network.load_shared(tensors)
            masks = torch.Generator().manual_seed(seed + number)
            loss, _ = self._loss(*self._batch(batches[number], np.random.default_rng([seed, number]), masks))
            found = torch.autograd.grad(loss, [trained[name] for name in scope])
            return float(loss.detach()), dict(zip(scope, found, strict=True))

        mixture = learn_mixture(
            local=local,
            shared=given,
            weights=self.mixing,
            gradient=gradient,
            batches=len(batches),
            section=self.section.ala,
            aborted=aborted,
        )
        self.network.load_shared(mixture.tensors)
        self.mixing = mixture.weights
        self.figures |= mixture.figures

    def _teacher_tensors(self) -> dict[str, torch.Tensor]:
        """The teacher's tensors that follow the student, by their name in the student."""
        trained = self.network.trained()
        return {
            name: tensor
            for name, tensor in self.teacher.named_parameters(prefix=self.network.prefix)
            if name in trained
        }

    def _on_device(self, tensors: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
        return None if tensors is None else {name: tensor.to(self.device) for name, tensor in tensors.items()}


@torch.no_grad()
def _copy(into: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(source[name])


def _decay_groups(trained: Mapping[str, torch.nn.Parameter]) -> list[dict[str, object]]:
    """Two groups: matrices decay; biases, norms, position tables and the mask token do not."""

    def decays(name: str, parameter: torch.nn.Parameter) -> bool:
        return parameter.ndim > 1 and not name.endswith(("relative_position_bias_table", "position_embeddings"))

    return [
        {"params": [parameter for name, parameter in trained.items() if decays(name, parameter)]},
        {
            "params": [parameter for name, parameter in trained.items() if not decays(name, parameter)],
            "weight_decay": 0.0,
        },
    ]
