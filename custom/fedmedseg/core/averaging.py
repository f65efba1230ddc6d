"""The weighted mean over sites: equal bytes whatever the order of arrival and the server's cores."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

WEIGHT_CAP = 10.0
"""No site weighs more than this many times the (low) median of its round."""
BLOCK = 1 << 16
"""Numbers that are summed at a time."""


@contextmanager
def single_threaded() -> Iterator[None]:
    """Norms and products are summed in parts, one per thread: the aggregate must not depend on the server's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weighted_mean(
    differences: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Per-tensor weighted sum over sites in sorted order, accumulated in float32 or wider.

    Block by block, so that the sum stays in the processor's cache while the sites are added to it.
    """
    sites = sorted(differences)
    result: dict[str, torch.Tensor] = {}
    for name, first in differences[sites[0]].items():
        total = torch.empty(first.numel(), dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
        flat = [(differences[site][name].reshape(-1), weights[site]) for site in sites]
        for begin in range(0, first.numel(), BLOCK):
            part = total[begin : begin + BLOCK].zero_()
            for tensor, weight in flat:
                part.add_(tensor[begin : begin + BLOCK].to(total.dtype), alpha=weight)
        result[name] = total.reshape(first.shape).to(first.dtype)
    return result


def normalised_weights(examples: Mapping[str, int | None]) -> tuple[dict[str, float], list[str]]:
    """Weights that sum to 1, and what had to be said about them.

    A site weighs as many cases as it has, at most ``WEIGHT_CAP`` times the low median of the round. Where one
    site suppresses its count, all weigh the same.
    """
    sites = sorted(examples)
    if any(examples[site] is None for site in sites):
        hidden = ", ".join(site for site in sites if examples[site] is None)
        return {site: 1.0 / len(sites) for site in sites}, [f"equal weights: {hidden} suppressed the count"]
    counts = {site: float(examples[site] or 0) for site in sites}
    cap = WEIGHT_CAP * statistics.median_low(counts.values())
    said = []
    for site in sites:
        if cap and counts[site] > cap:
            said.append(f"weight of {site} capped from {counts[site]:g} to {cap:g}")
            counts[site] = cap
    total = sum(counts.values())
    if not total:
        return {site: 1.0 / len(sites) for site in sites}, ["equal weights: no site counted any case"]
    return {site: count / total for site, count in counts.items()}, said


def alike(examples: Mapping[str, int | None]) -> dict[str, int | None]:
    """One case for every site that has any or suppresses its count: what equal weights follow from."""
    return {site: 0 if count == 0 else 1 for site, count in examples.items()}
