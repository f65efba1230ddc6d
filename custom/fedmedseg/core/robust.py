"""What the server does about updates that are unlike the others: it says so, and where a study wants it, bounds them.

Every round in which differences come back is looked at, whatever the rule: of three sites and more one whose update is
much longer than the median, or points away from most others, is named in the record and the log; of two nobody can say
which is the odd one. Nothing is dropped for that. What bounds
its influence is the study's choice (``federation.robust``), and each rule holds under a condition on the number of
sites n and of faulty ones among them f that is checked before it is used:

| rule | what it makes | n at least |
|---|---|---|
| ``mean`` with ``clip: median`` | the mean of updates no longer than the running median | 2 f + 1 |
| ``trimmed_mean`` | number by number the mean without the f least and f largest (Yin et al. 2018) | 2 f + 1 |
| ``median`` | number by number the median (Yin et al. 2018) | 2 f + 1 |
| ``krum`` | the update nearest to its n - f - 2 nearest (Blanchard et al. 2017) | 2 f + 3 |
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.federation_settings import RobustSection
from fedmedseg.core.ordering import median, trimmed_mean
from fedmedseg.core.spilled import DerivedTensors

LONG = 3.0
"""An update so many times as long as the round's (low) median is called an outlier."""
FEWEST = 3
"""Sites below which none is called an outlier: the median of two is one of them, and a direction has no majority."""
WINDOW = 5
"""Rounds whose medians the running median is of, this one among them."""
BLOCK = 1 << 16
"""Numbers of a site that are compared at a time."""
SPARSE_FROM = 1 << 22
"""Numbers of an update above which not all are compared with the other sites' in every round."""
SPARSE = 8
"""One block in so many is, then: a comparison of all would take longer than the mean itself."""

Tensors = Mapping[str, torch.Tensor]
Differences = Mapping[str, Tensors]
"""Site to its differences."""


@dataclass(frozen=True)
class Survey:
    """How long the updates of a round are, and how they lie to each other over the tensors that all sites share."""

    norms: Mapping[str, float]
    """Euclidean length of each site's update; sites in alphabetical order."""
    products: torch.Tensor
    """(sites, sites) float64: inner product of each two, of a large model over some of its numbers (``survey``)."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites, as rows and columns of ``products``."""
        return tuple(self.norms)

    @property
    def median_norm(self) -> float:
        """The low median of the lengths: of two the shorter."""
        return statistics.median_low(self.norms.values())

    @property
    def agreement(self) -> dict[str, float]:
        """The median of each update's cosines with the others'; empty for fewer than three that moved."""
        lengths = self.products.diagonal().sqrt().tolist()
        moved = [(i, site) for i, site in enumerate(self.sites) if lengths[i] > 0.0]
        if len(moved) < FEWEST:
            return {}
        return {
            site: statistics.median(float(self.products[i, j]) / (lengths[i] * lengths[j]) for j, _ in moved if j != i)
            for i, site in moved
        }

    @property
    def distances(self) -> torch.Tensor:
        """(sites, sites) float64: squared distance of each two updates."""
        squares = self.products.diagonal()
        return (squares[:, None] + squares[None, :] - 2.0 * self.products).clamp_min(0.0)

    def outliers(self) -> dict[str, list[str]]:
        """Site to why its update is unlike the others; empty where none is, and of fewer than three sites."""
        found: dict[str, list[str]] = {}
        if len(self.norms) < FEWEST:
            return found
        typical = self.median_norm
        for site, norm in self.norms.items():
            if norm > LONG * typical:
                times = f"{norm / typical:.3g} times the median" if typical else "where the median is 0"
                found.setdefault(site, []).append(f"its update is long: {times}")
        for site, cosine in self.agreement.items():
            if cosine < 0.0:
                found.setdefault(site, []).append(f"its update points away from most: median cosine {cosine:.2f}")
        return found


def survey(
    differences: Differences,
    names: Collection[str],
    *,
    measured: Collection[str] | None = None,
    norms: Mapping[str, Mapping[str, float]] | None = None,
    offset: int = 0,
    exact: bool = False,
) -> Survey:
    """Compare the sites' differences of the tensors called ``names``, and measure those of ``measured`` (unset: the
    same) that a site returned.

    ``norms`` holds the length of each tensor of each site, where these are known. Of more than ``SPARSE_FROM`` numbers
    one block in ``SPARSE`` is compared, from block ``offset`` on (the number of the round: ``SPARSE`` rounds see all),
    unless it must be ``exact``; lengths are always exact. A length of each tensor was found finite in float32 before,
    so that no product in here overflows.
    """
    sites, chosen = tuple(sorted(differences)), sorted(names)
    lengths = {}
    for site in sites:
        here = sorted(name for name in (chosen if measured is None else measured) if name in differences[site])
        known = (norms or {}).get(site) or norms_of({name: differences[site][name] for name in here})
        lengths[site] = math.sqrt(math.fsum(known[name] ** 2 for name in here))
    numbers = sum(differences[sites[0]][name].numel() for name in chosen)
    every = 1 if exact or numbers <= SPARSE_FROM else SPARSE
    products = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    block = torch.empty(len(sites), BLOCK)
    count = 0
    for name in chosen:
        flat = [differences[site][name].reshape(-1) for site in sites]
        for begin in range(0, flat[0].numel(), BLOCK):
            count += 1
            if (count - 1 - offset) % every:
                continue
            part = block[:, : min(BLOCK, flat[0].numel() - begin)]
            for row, tensor in zip(part, flat, strict=True):
                row.copy_(tensor[begin : begin + BLOCK])
            products += part @ part.T
    return Survey(norms=lengths, products=products)


def norms_of(tensors: Tensors) -> dict[str, float]:
    """The Euclidean length of each tensor, summed in float32."""
    return {name: float(torch.linalg.vector_norm(tensor, dtype=torch.float32)) for name, tensor in tensors.items()}


def running_median(earlier: Sequence[float], now: float) -> float:
    """The median of the medians of the last ``WINDOW`` rounds, this one's among them."""
    return statistics.median_low([*earlier[-(WINDOW - 1) :], now])


def earlier_medians(history: Sequence[Mapping[str, Any]], *, stage: str, number: int) -> tuple[float, ...]:
    """Median lengths of the updates in the rounds of ``stage`` before round ``number``, from the rounds' records."""
    rounds = [record for record in history if record["stage"] == stage and record["round"] < number]
    noted = [(record.get("notes") or {}).get("updates") for record in rounds]
    return tuple(float(one["median"]) for one in noted if one)


def clipped(differences: Tensors, *, norm: float, limit: float) -> Tensors:
    """``differences`` brought to length ``limit`` where ``norm``, theirs, is above it; else the very same object."""
    if norm <= limit:
        return differences
    return DerivedTensors(differences, differences, lambda tensor: tensor * (limit / norm))


def combined(differences: Differences, section: RobustSection) -> dict[str, torch.Tensor]:
    """The differences that a rule other than the mean makes of the sites'; every site counts alike.

    Raises:
        FedMedSegError: too few sites for the rule's condition (reason ROBUST).
    """
    require_enough(len(differences), section)
    sites = sorted(differences)
    names = list(differences[sites[0]])
    if section.rule == "krum":
        chosen = differences[nearest_site(survey(differences, names, exact=True), section.faulty)]
        return {name: chosen[name].clone() for name in names}
    result = {}
    for name in names:
        # of large replies, which lie on the disk, one tensor of all sites is in memory at a time
        rows = [differences[site][name] for site in sites]
        result[name] = median(rows) if section.rule == "median" else trimmed_mean(rows, section.faulty)
    return result


def nearest_site(found: Survey, faulty: int) -> str:
    """Krum: the site with the least sum of squared distances to its n - f - 2 nearest; of equals the first by name."""
    distances, count = found.distances.clone(), len(found.sites) - faulty - 2
    distances.fill_diagonal_(math.inf)
    sums = distances.sort(dim=1).values[:, :count].sum(dim=1)
    return found.sites[int(sums.argmin())]


def require_enough(sites: int, section: RobustSection) -> None:
    """Raise where the rule's condition on n and f does not hold.

    Raises:
        FedMedSegError: reason ROBUST.
    """
    if sites < section.least:
        raise FedMedSegError(
            "federation.robust",
            got=f"{sites} sites that count",
            expected=f"at least {section.least} for {section.named}",
            remedy="let more sites take part, or lower federation.robust.faulty",
            reason=Reason.ROBUST,
        )
