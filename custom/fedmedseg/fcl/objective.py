"""One site's contrastive pretraining: views of slices, main and momentum encoder, bank, and all a round remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from fedmedseg.core.ahead import Ahead
from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.exchange import Features
from fedmedseg.core.optimizer import build_sgd, descend, learning_rate, restore_optimizer, set_learning_rate
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.training import Aborted, require_finite
from fedmedseg.data.sampling import ImageSource
from fedmedseg.data.slices import SliceAt, all_slices, draw_pairs, middle_crop
from fedmedseg.fcl.bank import FeatureBank, capacity_of, received_rows, sampled
from fedmedseg.fcl.losses import SLICES, Rows, contrastive_losses
from fedmedseg.fcl.sharing import ContrastiveNetwork, follow, momentum_network
from fedmedseg.networks.compute import prepare
from fedmedseg.networks.timing import StepTrial


class ContrastiveObjective:
    """The pretext of one site, step by step; implements ``core.training.AheadObjective``.

    A round is ``begin`` and then either ``initialise`` or, where it continues after a kill, ``restore``.
    """

    def __init__(self, *, experiment: Experiment, volumes: ImageSource, device: torch.device) -> None:
        self.experiment, self.volumes, self.device = experiment, volumes, device
        self.section = section = experiment.wing
        self.network = ContrastiveNetwork(experiment=experiment).to(device)
        self.key = momentum_network(self.network)
        self.slices = all_slices(volumes, section.parts, section.partition)
        capacity = capacity_of(size=section.bank.size, share=section.bank.share, slices=len(self.slices))
        self.bank = FeatureBank(capacity=capacity, width=section.projector.out, device=device)
        self.batches = Ahead(partial(_batch, volumes, experiment))
        self.use(SHIPPED)
        self.begin(round=0, rounds=1, received=None)

    @property
    def steps(self) -> int:
        """Optimiser steps of a round here."""
        if self.section.local_steps is not None:
            return int(self.section.local_steps)
        batch = self.section.volumes_per_step * self.section.parts
        return int(self.section.local_epochs) * math.ceil(len(self.slices) / batch)

    def use(self, choice: ComputeChoice) -> None:
        """Compute both encoders in that way from now on; weights, momentum, features and losses stay float32."""
        self.compute = choice
        for network in (self.network, self.key):
            prepare(network, choice)

    def trial(self) -> StepTrial:
        """This objective's forward and backward on noise of a batch's shape, to be timed; it is spent by that."""
        section = self.section
        count = section.volumes_per_step * section.parts
        views = [torch.randn(count, 1, *self.experiment.data.crop, device=self.device) for _ in range(2)]
        slices = [SliceAt(volume=place, slice=0, part=place % section.parts) for place in range(count)]

        def loss(choice: ComputeChoice) -> torch.Tensor:
            self.compute = choice
            queries, keys = self._both(views, slices)
            local, remote = self._losses(queries, keys, keys)
            return local + remote

        seed = derive_seed(self.experiment.seed, "compute", "pretext")
        return StepTrial(networks=[self.network, self.key], loss=loss, seed=seed)

    def begin(self, *, round: int, rounds: int, received: Features | None) -> None:
        """Place a round in the schedule, with the others' features as they stay for the whole of it."""
        self.first_step, self.total = round * self.steps, rounds * self.steps
        self.structural = self.section.structural and round >= self.section.warmup_rounds
        self.received = received_rows(received, width=self.section.projector.out, device=self.device)
        self.bank.clear()
        self.batches.forget()
        self.optimizer = build_sgd(self.network.parameters(), self.section.optimizer)
        self.figures: dict[str, float] = {}

    def initialise(
        self,
        shared: Mapping[str, torch.Tensor],
        personal: Mapping[str, Any] | None,
        *,
        aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Both encoders, optimiser and bank of a round, from the server's tensors and what the site remembers.

        The main encoder is the server's, or under ``aggregation: none`` the site's own. The momentum encoder is a copy
        of it, or with ``key_sync: keep`` the site's own. The bank is filled by one pass without gradients, unless what
        it holds is of this very momentum encoder. Without a memory after round 0, ``memory_missing`` says so.

        Raises:
            Aborted: the federation asked to stop.
        """
        alone = self.section.aggregation == "none"
        self.network.load_shared(personal["tensors"] if personal is not None and alone else shared)
        if personal is not None:
            restore_optimizer(self.optimizer, personal["optimizer"])
        elif self.first_step:
            self.figures["memory_missing"] = 1.0
        if personal is not None and self.section.key_sync == "keep":
            self.key.load_shared(personal["key"])
            self.bank.restore(personal["bank"])
        else:
            self.key.load_shared(self.network.tensors())
            self.refill(aborted=aborted)

    def refill(self, *, aborted: Callable[[], bool] = lambda: False) -> None:
        """One pass over as many of the site's slices as the bank holds, drawn at random.

        Raises:
            Aborted: the federation asked to stop.
        """
        self.bank.clear()
        order = torch.randperm(len(self.slices))[: self.bank.capacity].tolist()
        self.bank.push(self.encoded([self.slices[place] for place in order], aborted=aborted))

    @torch.no_grad()
    def encoded(self, slices: Sequence[SliceAt], *, aborted: Callable[[], bool] = lambda: False) -> Rows:
        """The momentum encoder's features of the middle crops of ``slices``, without chance but for the batches.

        Raises:
            Aborted: the federation asked to stop.
        """
        found = []
        # batches of nearly equal size: a last one of a single slice has no spread to be normalised by
        batches = math.ceil(len(slices) / (self.section.volumes_per_step * self.section.parts))
        for places in np.array_split(np.arange(len(slices)), batches):
            if aborted():
                raise Aborted
            crops = [middle_crop(self.volumes, slices[place], self.experiment.data) for place in places]
            found.append(self._features(self.key, torch.stack(crops)))
        return self._rows(torch.cat(found), slices)

    def expect(self, seed: int) -> None:
        """Make the batch of the step with this seed, beside the step that comes before it."""
        self.batches.expect(seed)

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on two views each of a batch of slices; returns ``loss`` and its terms.

        Raises:
            FedMedSegError: loss or gradient are not finite (reason LOCAL_DIVERGED); encoders and bank are untouched.
        """
        section = self.section
        set_learning_rate(self.optimizer, learning_rate(section.optimizer, self.first_step + index, self.total))
        batch, views = self.batches.next()
        queries, keys = self._both(views, batch)
        count = section.bank.samples or len(self.bank)
        local, remote = self._losses(queries, keys, sampled(self.bank.rows, self.received, count=count))
        loss = local + remote
        require_finite("loss", float(loss.detach()))
        descend(self.optimizer, loss, self.network.parameters(), clip_norm=section.optimizer.clip_norm)
        follow(self.key, self.network, section.momentum)
        self.bank.push(keys)
        return {
            "loss": float(loss.detach()),
            "loss/local": float(local.detach()),
            "loss/remote": float(remote.detach()),
        }

    def leaving(self, *, aborted: Callable[[], bool] = lambda: False) -> Features:
        """The features that the site gives to the exchange as a round ends; ``upload`` says which.

        Raises:
            Aborted: the federation asked to stop.
        """
        if self.section.upload == "recompute":
            self.refill(aborted=aborted)
        return self.bank.features()

    def shared(self) -> dict[str, torch.Tensor]:
        """The main encoder and projector, copied to the CPU."""
        return self.network.shared()

    def memory(self) -> dict[str, Any]:
        """What the site keeps for its next round: both encoders, optimiser and bank."""
        return {
            "tensors": self.network.shared(),
            "key": self.key.shared(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state(),
        }

    def state(self) -> Any:
        """All that a killed round needs to go on."""
        return {**self.memory(), "figures": self.figures}

    def restore(self, tree: Any) -> None:
        """Go on from ``state``."""
        self.network.load_shared(tree["tensors"])
        self.key.load_shared(tree["key"])
        restore_optimizer(self.optimizer, tree["optimizer"])
        self.bank.restore(tree["bank"])
        self.figures = dict(tree["figures"])

    def _both(self, views: Sequence[torch.Tensor], slices: Sequence[SliceAt]) -> tuple[Rows, Rows]:
        """The main encoder's features of the first of two views (B, 1, *crop), the momentum encoder's of the second."""
        with torch.no_grad():
            keys = self._rows(self._features(self.key, views[1]), slices)
        return self._rows(self._features(self.network, views[0]), slices), keys

    def _losses(self, queries: Rows, keys: Rows, bank: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        section = self.section
        return contrastive_losses(
            queries,
            keys,
            bank,
            temperature=section.temperature,
            denominator=section.denominator,
            positives=section.positives,
            structural=self.structural,
        )

    def _features(self, network: ContrastiveNetwork, images: torch.Tensor) -> torch.Tensor:
        images = self.compute.on_device(images, self.device)
        with self.compute.autocast(self.device):
            # both encoders in training mode: features that are compared must be normalised alike
            features: torch.Tensor = network.train()(images)
        return features

    def _rows(self, vectors: torch.Tensor, slices: Sequence[SliceAt]) -> Rows:
        return Rows(
            vectors=vectors,
            parts=torch.tensor([at.part for at in slices], dtype=torch.uint8, device=self.device),
            slices=torch.tensor([at.volume * SLICES + at.slice for at in slices], device=self.device),
        )


def _batch(
    volumes: ImageSource, experiment: Experiment, seed: int
) -> tuple[list[SliceAt], tuple[torch.Tensor, torch.Tensor]]:
    """Slices of a step, and two views of each."""
    section = experiment.wing
    return draw_pairs(
        volumes,
        np.random.default_rng(seed),
        experiment.data,
        volumes_per_step=section.volumes_per_step,
        parts=section.parts,
        rule=section.partition,
    )
