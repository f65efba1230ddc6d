"""The server's rule where sites train different heads: each head is the mean over the sites that trained it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from fedmedseg.cardiac_ct.plan import HEADS
from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.config import load_experiment
from fedmedseg.core.contribution import Contribution

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
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Weighted mean per tensor of ``shared``, of each head over those sites alone that trained it, and which those are.

    ``mean_of`` is the mean, or what a study has in its place. A head that nobody trained stays.

    Raises:
        FedMedSegError: fewer sites trained a head than ``mean_of`` takes (reason ROBUST).
    """
    owners = owners_of(differences, shared)
    groups = {"": sorted(differences)} | {task: sites for task, sites in owners.items() if sites}
    mean: dict[str, torch.Tensor] = {}
    for task, sites in groups.items():
        names = [name for name in shared if head_of(name) == task]
        if not names:
            continue
        total = 1.0 if len(sites) == len(differences) else sum(weights[site] for site in sites)
        mean |= mean_of(
            {site: Chosen(differences[site], names) for site in sites},
            {site: weights[site] / total for site in sites},
        )
    return mean | {name: torch.zeros_like(tensor) for name, tensor in shared.items() if name not in mean}, owners


class Chosen(Mapping[str, torch.Tensor]):
    """Some tensors of a reply; those of a large one lie on the disk and are read one by one."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TrainedHeadsAggregator(GuardedAggregator):
    """FedAvg over the transformer; over each head among the sites that trained it, or all (``cardiac_ct.head_mean``).

    Args:
        experiment_file: path of experiment.yaml; its `cardiac_ct` section chooses the rule.
    """

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
        mean, self.notes["heads"] = mean_by_head(shared, differences, weights, mean_of=self.mean)
        return mean

    def comparable(self, names: Iterable[str]) -> list[str]:
        """The transformer alone: sites train different heads."""
        return [name for name in names if not head_of(name)]
