"""FedCRLD's server rule as a FLARE aggregator: the mean of the sites' encoders, each site counting alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedmedseg.core.aggregator import Contribution, GuardedAggregator, weighted_mean
from fedmedseg.core.config import load_experiment


class RelocalizationAggregator(GuardedAggregator):
    """Mean of the shared tensors' differences, equal or by cases as ``fedcrld.weights`` says.

    Args:
        experiment_file: path of experiment.yaml.
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
        """Differences to the shared tensors; the weights used go to the round's record."""
        used = equal_weights(weights) if self._section.weights == "equal" else dict(weights)
        self.weights.update(used)
        return weighted_mean({site: c.differences for site, c in contributions.items()}, used)


def equal_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The same for every site that counts: 1 / n, whatever its cases."""
    return {site: 1.0 / len(weights) for site in sorted(weights)}
