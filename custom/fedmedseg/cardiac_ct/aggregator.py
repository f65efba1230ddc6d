"""The server's rule where sites train different heads: each head is the mean over the sites that trained it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from fedmedseg.cardiac_ct.plan import HEADS
from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.config import load_experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.spilled import DerivedTensors

Differences = Mapping[str, Mapping[str, torch.Tensor]]
Mean = Callable[[Differences, Mapping[str, float]], dict[str, torch.Tensor]]


def head_of(name: str) -> str:
    """The task whose head the tensor called ``name`` belongs to, or an empty text."""
    return name.removeprefix(HEADS).partition(".")[0] if name.startswith(HEADS) else ""


def trained_heads(differences: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """The tasks whose heads moved at a site: one that no batch taught is exactly as it came, and is not sent."""
    heads = [name for name in differences if head_of(name)]
    return frozenset(head_of(name) for name in heads if bool(differences[name].any()))


def owners_of(differences: Differences, names: Iterable[str]) -> dict[str, list[str]]:
    """Per task whose head has tensors among ``names`` the sites that trained it."""
    moved = {site: trained_heads(tensors) for site, tensors in differences.items()}
    tasks = dict.fromkeys(task for task in map(head_of, names) if task)
    return {task: [site for site in sorted(moved) if task in moved[site]] for task in tasks}


def mean_by_head(
    shared: Mapping[str, torch.Tensor],
    differences: Differences,
    weights: Mapping[str, float],
    *,
    mean_of: Mean = weighted_mean,
    least: int = 1,
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Weighted mean per tensor of ``shared``, of each head over those sites alone that trained it, and which those are.

    ``mean_of`` is the mean, or what a study has in its place. A head that fewer than ``least`` sites trained stays.
    """
    owners = owners_of(differences, shared)
    groups = {"": sorted(differences)} | {task: sites for task, sites in owners.items() if len(sites) >= least}
    mean: dict[str, torch.Tensor] = {}
    for task, sites in groups.items():
        names = [name for name in shared if head_of(name) == task]
        if not names:
            continue
        total = 1.0 if len(sites) == len(differences) else sum(weights[site] for site in sites)
        mean |= mean_of(
            {site: DerivedTensors(differences[site], names) for site in sites},
            {site: weights[site] / total for site in sites},
        )
    return mean | {name: torch.zeros_like(tensor) for name, tensor in shared.items() if name not in mean}, owners


class TrainedHeadsAggregator(GuardedAggregator):
    """FedAvg over the transformer; over each head among the sites that trained it, or all (``cardiac_ct.head_mean``).

    Where the study has another rule in the mean's place, a head that fewer sites trained than this needs stays as it
    was: one site that leaves a head out, or moves one of its own accord, must not end the study.

    Args:
        experiment_file: path of experiment.yaml; its `cardiac_ct` section chooses the rule.
    """

    separates = True

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self._over_all = load_experiment(experiment_file).wing.head_mean == "all"

    @property
    def needs_plain(self) -> str:
        """Who trained a head shows in the replies; the mean over all sites does not ask for it."""
        return "" if self._over_all else "cardiac_ct.head_mean trained reads the sites' differences"

    def combine(
        self,
        shared: Mapping[str, torch.Tensor],
        contributions: Mapping[str, Contribution],
        weights: Mapping[str, float],
    ) -> Mapping[str, torch.Tensor]:
        """See ``mean_by_head``; the record says who trained which head."""
        differences = {site: one.differences for site, one in contributions.items()}
        if self._over_all:
            self.notes["heads"] = owners_of(differences, shared)
            return self.mean(differences, weights)
        least = 1 if self.round is None else self.round.robust.least
        mean, owners = mean_by_head(shared, differences, weights, mean_of=self.mean, least=least)
        self.notes["heads"] = owners
        if left := [task for task, sites in owners.items() if 0 < len(sites) < least]:
            self.notes["heads_left"] = left
        return mean

    def comparable(self, names: Iterable[str]) -> list[str]:
        """The transformer alone: sites train different heads."""
        return [name for name in names if not head_of(name)]

    def measured(self, names: Iterable[str]) -> list[str]:
        """All that a site moved: a bound on the transformer alone would leave the heads without one."""
        return list(names)
