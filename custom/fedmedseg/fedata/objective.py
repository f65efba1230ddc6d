"""One site's masked self-distillation: crops, student, teacher, mixing and everything a round must remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.optimizer import build_optimizer, descend, learning_rate, restore_optimizer, set_learning_rate
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.training import require_finite
from fedmedseg.fedata.initialisation import SEEDS, make_initialisation
from fedmedseg.fedata.masking import places, random_masks
from fedmedseg.fedata.network import MaskedEncoder
from fedmedseg.fedata.personal_models import proximal_term
from fedmedseg.fedata.pretext import Outcome
from fedmedseg.fedata.pretexts import make_pretext
from fedmedseg.fedata.teacher import from_wire, make_teacher, momentum, relative_gap, to_wire, update_teacher
from fedmedseg.networks.compute import prepare
from fedmedseg.networks.timing import StepTrial


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
        self.pretext = make_pretext(self.section, self.network)
        self.teacher = make_teacher(self.network.encoder) if self.pretext.has_teacher else None
        self.initialisation = make_initialisation(self.section, self.network, volumes=volumes)
        self.use(SHIPPED)
        self.begin(round=0, rounds=1)

    def use(self, choice: ComputeChoice) -> None:
        """Compute student and teacher in that way from now on; weights, moments, averages and losses stay float32."""
        self.compute = choice
        for network in self._networks():
            prepare(network, choice)

    def trial(self) -> StepTrial:
        """This objective's forward and backward on noise of a batch's shape, to be timed; it is spent by that."""
        section, crop = self.section, self.experiment.data.crop
        count = section.volumes_per_step * section.crops_per_volume
        images = torch.randn(count, 1, *crop, device=self.device)
        masks = random_masks(count, crop, unit=section.mask_unit, ratio=section.mask_ratio).to(self.device)
        self.network.train()

        def loss(choice: ComputeChoice) -> torch.Tensor:
            self.compute = choice
            return self._loss(images, masks)[0]

        seed = derive_seed(self.experiment.seed, "compute", "pretext")
        return StepTrial(networks=self._networks(), loss=loss, seed=seed)

    def begin(self, *, round: int, rounds: int) -> None:
        """Place a round in the stage's schedules, with an optimiser of its own.

        Moments of AdamW belong to the model they were gathered on, which the server has just moved; they are not
        carried over. Learning rate and momentum go on where the last round ended.
        """
        self.position, self.total = round * self.section.local_steps, rounds * self.section.local_steps
        self.first_step = self.position
        self.pretext.reset()
        self.optimizer = build_optimizer(_decay_groups(self.network.trained()), self.section.optimizer)
        self.initialisation.begin()
        self.reference: float | None = None
        self.figures: dict[str, float] = {}
        self.centre: dict[str, torch.Tensor] = {}

    def stay_near(self, shared: Mapping[str, torch.Tensor]) -> None:
        """Pull the student towards the server's tensors from now on in this round, where ``pair.prox`` asks for it."""
        if self.section.pair.prox:
            self.centre = {name: shared[name].to(self.device) for name in self.network.trained()}

    def initialise(
        self,
        shared: Mapping[str, torch.Tensor],
        personal: Mapping[str, Any] | None,
        *,
        aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Personal initialisation of a round from the server's tensors and what the site remembers (see ``memory``).

        Without a memory the student is the server's, and after round 0 the figure ``memory_missing`` says so. The
        teacher is a copy of the server's student then, and the site's own of its last round otherwise;
        ``teacher_sync`` ``aggregate`` takes the server's teacher from round 1 on, and ``reset`` copies the student in
        the end. Mixing weights are learned against the teacher from before a reset.
        """
        student, averaged = from_wire(shared)
        own = student if personal is None else personal["teacher"]
        # in round 0 nothing was averaged yet, and the server may have been given an encoder but no teacher
        _copy(self._teacher_tensors(), averaged if averaged and self.first_step else own)
        if personal is None:
            self.initialisation.first(student)
            if self.first_step:
                self.figures["memory_missing"] = 1.0
        else:
            self.reference = personal["reference"]
            self.pretext.load(personal["pretext"])
            self.figures |= self.initialisation.start(
                student, personal["tensors"], personal["mixing"], loss=self._mixing_loss, aborted=aborted
            )
        if self.section.teacher_sync == "reset":
            _copy(self._teacher_tensors(), self.network.trained())
        if self.teacher is not None:
            self.figures["student_teacher_gap"] = relative_gap(self._teacher_tensors(), self.network.trained())

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on fresh crops and masks; returns ``loss`` and the pretext's figures.

        Raises:
            FedMedSegError: loss or gradient are not finite (reason LOCAL_DIVERGED); student and teacher are then
                untouched, so that a diverged step can reach neither the site's memory nor its next round.
        """
        self.position = self.first_step + index
        set_learning_rate(self.optimizer, learning_rate(self.section.optimizer, self.position, self.total))
        rng = np.random.default_rng(int(torch.randint(SEEDS, (1,))))
        chosen = rng.choice(
            self.volumes, size=self.section.volumes_per_step, replace=self.volumes < self.section.volumes_per_step
        )
        self.network.train()
        loss, outcome = self._loss(*self._batch(chosen, rng))
        if self.centre:
            pull = proximal_term(self.network.trained(), self.centre, weight=self.section.pair.prox)
            loss, outcome.figures["loss/prox"] = loss + pull, float(pull.detach())
        require_finite("loss", float(loss.detach()))
        trained = self.network.trained()
        descend(self.optimizer, loss, trained.values(), clip_norm=self.section.optimizer.clip_norm)
        if self.teacher is not None:
            ema = self.section.ema
            follow = momentum(self.position, self.total, start=ema.start, end=ema.end, schedule=ema.schedule)
            update_teacher(self._teacher_tensors(), trained, follow)
        self.pretext.follow(outcome.targets)
        if self.reference is None:
            self.reference = outcome.figures.get("teacher_std")
        return {"loss": float(loss.detach()), **outcome.figures}

    def shared(self) -> dict[str, torch.Tensor]:
        """What a reply carries, copied to the CPU: the student and, where teachers are averaged, the teacher."""
        teacher = self._teacher_tensors() if self.section.teacher_sync == "aggregate" else {}
        return self.network.shared() | to_wire(teacher)

    def memory(self) -> dict[str, Any]:
        """What the site keeps for its next round: student, teacher, the pretext's own, what the personal
        initialisation remembers, reference of the monitor."""
        return {**self._core(), "mixing": self.initialisation.memory()}

    def state(self) -> Any:
        """The memory as it is in the middle of a round, the optimiser and the round's figures: all that a killed
        round needs to go on."""
        return {
            **self._core(),
            "mixing": self.initialisation.state(),
            "optimizer": self.optimizer.state_dict(),
            "figures": self.figures,
        }

    def restore(self, tree: Any) -> None:
        """Go on from ``state``."""
        self.network.load_shared(tree["tensors"])
        _copy(self._teacher_tensors(), tree["teacher"])
        self.pretext.load(tree["pretext"])
        restore_optimizer(self.optimizer, tree["optimizer"])
        self.initialisation.restore(tree["mixing"])
        self.reference, self.figures = tree["reference"], dict(tree["figures"])

    def _core(self) -> dict[str, Any]:
        return {
            "tensors": self.network.shared(),
            "teacher": {name: tensor.detach() for name, tensor in self._teacher_tensors().items()},
            "pretext": self.pretext.memory(),
            "reference": self.reference,
        }

    def _loss(self, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, Outcome]:
        """Pretext loss of a batch and what came with it; a teacher sees whole crops."""
        where = places(masks)
        images = self.compute.on_device(images, self.device)
        # losses and targets raise what the networks give them to float32 themselves
        with self.compute.autocast(self.device):
            with torch.no_grad():
                targets = self.pretext.targets(self.teacher, images, where)
            view = self.network(images, masks)
            outcome = self.pretext.loss(view, targets, where, position=self.position, total=self.total)
        return outcome.loss, outcome

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

    def _mixing_loss(self, volumes: np.ndarray, rng: np.random.Generator, masks: torch.Generator) -> torch.Tensor:
        return self._loss(*self._batch(volumes, rng, masks))[0]

    def _networks(self) -> list[torch.nn.Module]:
        """Student and, where there is one, teacher."""
        return [self.network] if self.teacher is None else [self.network, self.teacher]

    def _teacher_tensors(self) -> dict[str, torch.Tensor]:
        """The teacher's tensors that follow the student, by their name in the student; none without a teacher."""
        if self.teacher is None:
            return {}
        trained = self.network.trained()
        encoder = self.teacher.named_parameters(prefix=self.network.prefix)
        return {name: tensor for name, tensor in encoder if name in trained} | self.pretext.teacher_tensors()


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
