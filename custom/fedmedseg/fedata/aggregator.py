"""FedATA's server rule as a FLARE aggregator: attention over sites per layer group, or FedAvg."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedmedseg.core.aggregator import Contribution, GuardedAggregator, weighted_mean
from fedmedseg.core.config import load_experiment
from fedmedseg.fedata.attention import layer_attention


class AttentionAggregator(GuardedAggregator):
    """Adaptive attention aggregation (Dai et al. 2024; `layer_att` is our reconstruction) or `fedavg`.

    Args:
        experiment_file: path of experiment.yaml; its `fedata` section chooses the rule.
    """

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self._section = load_experiment(experiment_file).wing

    def combine(
        self,
        shared: Mapping[str, torch.Tensor],
        contributions: Mapping[str, Contribution],
        weights: Mapping[str, float],
    ) -> Mapping[str, torch.Tensor]:
        """Differences to the shared tensors; the attention weights go to the round's record."""
        differences = {site: contribution.differences for site, contribution in contributions.items()}
        if self._section.server_aggregation == "fedavg":
            return weighted_mean(differences, weights)
        updated, attention = layer_attention(
            shared, differences, weights, kappa=self._section.kappa, server_step=self._section.server_step
        )
        self.notes["attention"] = attention
        return updated
