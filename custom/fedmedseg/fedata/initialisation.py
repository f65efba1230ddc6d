"""Personal initialisation: what the student of a new round takes from the server and what from the site's last round.

One strategy per ``client_mix``, and one for sites that pretrain on their own. A strategy remembers at the site what it
needs there; nothing of it is ever sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedmedseg.core.fedema import mean_change, proportion, scale
from fedmedseg.fedata.grain import grains
from fedmedseg.fedata.mixing import learn_mixture

if TYPE_CHECKING:
    from fedmedseg.fedata.config import Section
    from fedmedseg.fedata.network import MaskedEncoder

SEEDS = 2**62
Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[np.ndarray, np.random.Generator, torch.Generator], torch.Tensor]
"""Pretext loss of the student as it stands: of the numbered volumes, with crops and masks of the generators."""


class Initialisation:
    """Base of all strategies, and ``replace``: every tensor is the server's.

    A round is ``begin``, then ``first`` (no memory of an earlier round) or ``start``, or ``restore`` after a kill.
    """

    def __init__(self, *, section: Section, network: MaskedEncoder, volumes: int) -> None:
        self.section, self.network, self.volumes = section, network, volumes
        self.begin()

    def begin(self) -> None:
        """Forget the round before."""

    def first(self, shared: Tensors) -> None:
        """Give the student the server's tensors: a site's first round, whatever the strategy."""
        self.network.load_shared(shared)

    def start(
        self, shared: Tensors, own: Tensors, remembered: Any, *, loss: Loss, aborted: Callable[[], bool]
    ) -> dict[str, float]:
        """Give the student the tensors that the round starts from; returns figures to report.

        ``shared`` are the server's and ``own`` those the site ended its last round with, named alike;
        ``remembered`` is what ``memory`` returned then.

        Raises:
            Aborted: the federation asked to stop.
            FedMedSegError: the loss is not finite (reason LOCAL_DIVERGED).
        """
        self.network.load_shared(shared)
        return {}

    def memory(self) -> Any:
        """What the next round needs beside the student, as the round ends: a checkpoint tree."""
        return None

    def state(self) -> Any:
        """What ``restore`` needs in the middle of a round: a checkpoint tree."""
        return self.memory()

    def restore(self, tree: Any) -> None:
        """Go on from ``state``."""

    def _tensors(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """``tensors`` on the student's device."""
        trained = self.network.trained()
        return {name: tensor.to(trained[name].device) for name, tensor in tensors.items()}


class Alone(Initialisation):
    """``server_aggregation: none``: the site goes on from its own student; nothing is the server's but the first."""

    def start(
        self, shared: Tensors, own: Tensors, remembered: Any, *, loss: Loss, aborted: Callable[[], bool]
    ) -> dict[str, float]:
        """The student as the last round left it."""
        self.network.load_shared(own)
        return {}


class KeepAttention(Initialisation):
    """``keep_attn_local``: self-attention stays the site's own, everything else is the server's.

    FedTP (Li et al., 2023) finds that averaging harms self-attention where sites differ. The wire is not changed:
    the site's attention tensors are still sent and averaged, for sites that join and for the ``shared`` start.
    """

    def start(
        self, shared: Tensors, own: Tensors, remembered: Any, *, loss: Loss, aborted: Callable[[], bool]
    ) -> dict[str, float]:
        """Server's tensors, and the own ones of self-attention."""
        self.network.load_shared({**shared, **{name: own[name] for name in self.network.attention()}})
        return {}


class LearnedMixture(Initialisation):
    """``ala_attn`` and ``ala_all``: the tensors in scope are mixed with learned weights (``mixing``)."""

    def begin(self) -> None:
        """No mixing weights yet."""
        self.weights: dict[str, torch.Tensor] | None = None

    def scope(self) -> list[str]:
        """Names of the tensors that are mixed, sorted."""
        if self.section.client_mix == "ala_all":
            return sorted(self.network.trained())
        last = self.network.last_stage() if self.section.ala.last_stage else []
        return sorted({*self.network.attention(), *last})

    def start(
        self, shared: Tensors, own: Tensors, remembered: Any, *, loss: Loss, aborted: Callable[[], bool]
    ) -> dict[str, float]:
        """Server's tensors, and the learned mixture of those in scope; no learning where own and shared are equal.

        Crops and masks are those of one seed in every pass, and drop path is off: otherwise their noise, not the
        choice between the two models, would move the weights.
        """
        self.network.load_shared(shared)
        self.restore(remembered)
        trained, scope = self.network.trained(), self.scope()
        given = self._tensors({name: shared[name] for name in scope})
        local = self._tensors({name: own[name] for name in scope})
        if all(torch.equal(given[name], local[name]) for name in scope):
            return {}
        seed = int(torch.randint(SEEDS, (1,)))
        sample = np.random.default_rng(seed).permutation(self.volumes)
        sample = sample[: max(1, math.ceil(self.section.ala.sample_share * self.volumes - 1e-9))]
        size = self.section.volumes_per_step
        batches = [sample[first : first + size] for first in range(0, len(sample), size)]
        self.network.eval()

        def gradient(number: int, tensors: Tensors) -> tuple[float, Tensors]:
            self.network.load_shared(tensors)
            masks = torch.Generator().manual_seed(seed + number)
            value = loss(batches[number], np.random.default_rng([seed, number]), masks)
            found = torch.autograd.grad(value, [trained[name] for name in scope])
            return float(value.detach()), dict(zip(scope, found, strict=True))

        mixture = learn_mixture(
            local=local,
            shared=given,
            weights=self.weights,
            gradient=gradient,
            batches=len(batches),
            section=self.section.ala,
            grains=grains(given, self.section.ala.granularity, self.network.attention_modules()),
            aborted=aborted,
        )
        self.network.load_shared(mixture.tensors)
        self.weights = mixture.weights
        return mixture.figures

    def memory(self) -> Any:
        """The mixing weights, None before the first use."""
        return self.weights

    def restore(self, tree: Any) -> None:
        """Take the mixing weights over."""
        self.weights = None if tree is None else self._tensors(tree)


class FedEMA(Initialisation):
    """``fedema``: all tensors in one proportion, by how far the site's last round moved them (``fedema``)."""

    def begin(self) -> None:
        """Neither a factor nor a place to measure from."""
        self.factor: float | None = None
        self.origin: dict[str, torch.Tensor] = {}

    def first(self, shared: Tensors) -> None:
        """The server's tensors, from which the round's change is measured."""
        super().first(shared)
        self.origin = self.network.shared()

    def start(
        self, shared: Tensors, own: Tensors, remembered: Any, *, loss: Loss, aborted: Callable[[], bool]
    ) -> dict[str, float]:
        """(1 - mu) * shared + mu * own, with the mu of the change remembered."""
        change = float(remembered["change"])
        self.factor = remembered["factor"]
        if self.factor is None:
            self.factor = scale(change, tau=self.section.fedema.tau)
        mu = proportion(change, self.factor)
        self.network.load_shared({name: torch.lerp(shared[name], own[name], mu) for name in shared})
        self.origin = self.network.shared()
        figures = {"mixing/change": change, "mixing/mu": mu}
        return figures if self.factor is None else figures | {"mixing/lambda": self.factor}

    def memory(self) -> Any:
        """lambda, and how far the student has come from where the round started."""
        return {"factor": self.factor, "change": mean_change(self.origin, self.network.shared())}

    def state(self) -> Any:
        """lambda, and where the round started."""
        return {"factor": self.factor, "origin": self.origin}

    def restore(self, tree: Any) -> None:
        """Take both over."""
        self.factor, self.origin = tree["factor"], dict(tree["origin"])


STRATEGIES: dict[str, type[Initialisation]] = {
    "ala_attn": LearnedMixture,
    "ala_all": LearnedMixture,
    "keep_attn_local": KeepAttention,
    "fedema": FedEMA,
    "replace": Initialisation,
}


def make_initialisation(section: Section, network: MaskedEncoder, *, volumes: int) -> Initialisation:
    """The strategy of the settings for a student on its device, at a site of so many volumes."""
    strategy = Alone if section.server_aggregation == "none" else STRATEGIES[section.client_mix]
    return strategy(section=section, network=network, volumes=volumes)
