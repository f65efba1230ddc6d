"""FedATA's server rules as a FLARE aggregator: attention over sites, personal models, FedAtt as published, FedAvg."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.config import load_experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.personal import Personal
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.spilled import DerivedTensors
from fedmedseg.fedata.attention import layer_attention, published_attention
from fedmedseg.fedata.personal_models import moved, pair_weights, personal_models, update_cosines
from fedmedseg.fedata.teacher import TEACHER

Tensors = Mapping[str, torch.Tensor]


class AttentionAggregator(GuardedAggregator):
    """Adaptive attention aggregation (Dai et al. 2024) in the form that ``fedata.server_aggregation`` chooses.

    ``layer_att`` and ``pair_att`` are our reconstructions; ``fedatt_faithful`` is Ji et al. 2019. ``notes`` hold
    ``attention`` (group or tensor, site, weight) or ``pair_attention`` (site, site, share) for the round's record.
    A teacher's tensors, where teachers are averaged, get the plain mean whatever the rule.

    Args:
        experiment_file: path of experiment.yaml; its `fedata` section chooses the rule.
    """

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self._experiment = load_experiment(experiment_file)
        self._section = self._experiment.wing

    @property
    def needs_plain(self) -> str:
        """Every rule but the plain mean looks into the replies."""
        rule = self._section.server_aggregation
        return "" if rule == "fedavg" else f"fedata.server_aggregation {rule} reads the sites' differences"

    def combine(
        self, shared: Tensors, contributions: Mapping[str, Contribution], weights: Mapping[str, float]
    ) -> Tensors:
        """Differences to the shared tensors; the attention weights go to the round's record."""
        differences = {site: contribution.differences for site, contribution in contributions.items()}
        updated = self._ruled(
            _students(shared), {site: _students(tensors) for site, tensors in differences.items()}, weights
        )
        teachers = {site: _teachers(tensors) for site, tensors in differences.items()}
        return {**updated, **(self.mean(teachers, weights) if any(teachers.values()) else {})}

    def personalise(self, shared: Tensors, contributions: Mapping[str, Contribution]) -> Personal:
        """The model of each site that was heard, under ``pair_att``."""
        ours = _students(shared)
        differences = {site: _students(contribution.differences) for site, contribution in contributions.items()}
        xi = pair_weights(update_cosines(differences), temperature=self._section.pair.temperature)
        self.notes["pair_attention"] = xi
        return personal_models(ours, self._starts(differences), differences, xi)

    def _ruled(
        self, shared: Tensors, differences: Mapping[str, Tensors], weights: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        section = self._section
        if section.server_aggregation == "layer_att":
            updated, self.notes["attention"] = layer_attention(
                shared,
                differences,
                weights,
                kappa=section.kappa,
                server_step=section.server_step,
                standardised=section.standardised,
            )
            return updated
        if section.server_aggregation == "fedatt_faithful":
            updated, self.notes["attention"] = published_attention(
                shared, differences, step=section.fedatt.step, noise=section.fedatt.noise, draws=self._draws
            )
            return updated
        if section.server_aggregation == "pair_att":
            # sites start from models of their own: the mean is one of models, not of differences
            return moved(shared, self._starts(differences), differences, weights)
        if section.server_aggregation == "fedavg":
            return self.mean(differences, weights)
        raise ConfigurationError(
            "fedata.server_aggregation", got=repr(section.server_aggregation), expected="a rule that aggregates tensors"
        )

    def _starts(self, differences: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """What each site's differences are to, of the students' tensors."""
        assert self.round is not None, "open_round was not called"
        return {site: self.round.start_of(site) for site in differences}

    def _draws(self, name: str) -> torch.Generator:
        """Noise of one tensor in one round: the same whichever run, attempt or process asks."""
        assert self.round is not None, "open_round was not called"
        seed = derive_seed(self._experiment.seed, "fedatt", self.round.stage, self.round.number, name)
        return torch.Generator().manual_seed(seed)


def _students(tensors: Tensors) -> Tensors:
    return DerivedTensors(tensors, [name for name in tensors if not name.startswith(TEACHER)])


def _teachers(tensors: Tensors) -> Tensors:
    return DerivedTensors(tensors, [name for name in tensors if name.startswith(TEACHER)])
