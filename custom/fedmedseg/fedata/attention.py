"""The server's rule: sites weighted by attention, per group of layers, from their distance to the shared model.

For group l and site c, with w_g the shared tensors and w_c the site's:

    d_c = |w_c - w_g| / (|w_g| + eps)
    z_c = d_c / mean_c(d) - 1            (0 where the mean is below eps)
    alpha_c = softmax_c(log n_c - kappa z_c)
    w_g <- w_g + eta * sum_c alpha_c (w_c - w_g)

The idea of layer-wise attention over sites is FedAtt's (Ji et al., 2019); this form of it is our reconstruction.
Dividing by the mean distance keeps nearly equal sites at nearly FedAvg; kappa 0 is FedAvg. ``standardised`` divides
by the spread instead, z_c = (d_c - mean) / std, which makes the z of any two sites 1 and -1 however close they are.

``published_attention`` is FedAtt itself, tensor by tensor and without case counts:

    alpha_c = softmax_c(|w_c - w_g|)
    w_g <- w_g + step * sum_c alpha_c (w_c - w_g) + noise * N(0, 1)

Its distances enter as they are and with a positive sign: the further a site, the more it weighs, and a few units of
distance already leave nearly all the weight to one site.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

import torch

_HEADS = ("mask_token", "predictor", "decoder", "head", "pixels")
_BLOCK = re.compile(r"^(.+?\.blocks\.\d+|.+?\.downsample)\.")
EPSILON = 1e-12


def layer_group(name: str) -> str:
    """The group of one shared tensor: its transformer block, merging or embedding; mask token; each head as a whole."""
    parts = name.split(".")
    if parts[0] in _HEADS:
        return parts[0]
    block = _BLOCK.match(name)
    return block.group(1) if block else ".".join(parts[:2])


def layer_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensor names by group, both sorted."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(layer_group(name), []).append(name)
    return groups


def attention_weights(
    distances: Mapping[str, float], counts: Mapping[str, float], *, kappa: float, standardised: bool = False
) -> dict[str, float]:
    """alpha per site from relative distances and case counts; they sum to 1. Sites are taken in sorted order."""
    sites = sorted(distances)
    mean = sum(distances[site] for site in sites) / len(sites)
    if standardised:
        spread = math.sqrt(sum((distances[site] - mean) ** 2 for site in sites) / len(sites))
        z = {site: (distances[site] - mean) / spread if spread > EPSILON else 0.0 for site in sites}
    else:
        z = {site: distances[site] / mean - 1.0 if mean > EPSILON else 0.0 for site in sites}
    return softmax({site: math.log(counts[site]) - kappa * z[site] for site in sites})


def softmax(logits: Mapping[str, float]) -> dict[str, float]:
    """exp of each entry over the sum of all, in the order of the sorted keys; no logit is too large for it."""
    highest = max(logits.values())
    odds = {key: math.exp(logits[key] - highest) for key in sorted(logits)}
    total = sum(odds.values())
    return {key: value / total for key, value in odds.items()}


def layer_attention(
    shared: Mapping[str, torch.Tensor],
    differences: Mapping[str, Mapping[str, torch.Tensor]],
    counts: Mapping[str, float],
    *,
    kappa: float,
    server_step: float = 1.0,
    standardised: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """Aggregate ``differences`` (site to tensors w_c - w_g) into one difference to add to ``shared``.

    ``counts`` holds each site's number of cases, or any positive multiple of it. (Under the guarded aggregator it is
    the round's weight: a count capped at ten times the low median, or equal shares where a site suppresses its
    count.) Sums run in float32 over sites in
    sorted order, so the result does not depend on who answered first. Returns the difference and the weights
    {group: {site: alpha}}.

    Raises:
        ValueError: no sites, a site without a positive count, or tensors that differ from ``shared``.
    """
    sites = _sites(shared, differences)
    if any(not counts.get(site, 0) > 0 for site in sites):
        raise ValueError("an aggregation needs sites, each with a positive count")
    result: dict[str, torch.Tensor] = {}
    table: dict[str, dict[str, float]] = {}
    for group, names in layer_groups(shared).items():
        norm = _norm(shared, names)
        distances = {site: _norm(differences[site], names) / (norm + EPSILON) for site in sites}
        table[group] = attention_weights(distances, counts, kappa=kappa, standardised=standardised)
        for name in names:
            result[name] = _sum(shared[name], differences, name, table[group], server_step).to(shared[name].dtype)
    return result, table


def published_attention(
    shared: Mapping[str, torch.Tensor],
    differences: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    step: float,
    noise: float,
    draws: Callable[[str], torch.Generator],
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """FedAtt (Ji et al., 2019): one difference to add to ``shared``, and the weights {tensor: {site: alpha}}.

    ``draws(name)`` gives the generator of a tensor's noise; it is not asked where ``noise`` is 0. A distance is the
    Euclidean norm over all elements of a tensor. The published code takes SciPy's 2-norm instead, which is the same
    for vectors, the largest singular value for matrices, and undefined for the tensors of a convolution.

    Raises:
        ValueError: no sites, or tensors that differ from ``shared``.
    """
    sites = _sites(shared, differences)
    result: dict[str, torch.Tensor] = {}
    table: dict[str, dict[str, float]] = {}
    for name in sorted(shared):
        table[name] = softmax({site: _norm(differences[site], [name]) for site in sites})
        total = _sum(shared[name], differences, name, table[name], step)
        if noise:
            total.add_(torch.randn(total.shape, generator=draws(name)), alpha=noise)
        result[name] = total.to(shared[name].dtype)
    return result, table


def _sites(shared: Mapping[str, torch.Tensor], differences: Mapping[str, Mapping[str, torch.Tensor]]) -> list[str]:
    """The sites in sorted order, where they are fit to be aggregated."""
    if not differences:
        raise ValueError("an aggregation needs sites, each with a positive count")
    if any(tensors.keys() != shared.keys() for tensors in differences.values()):
        raise ValueError("every site's differences name exactly the shared tensors")
    return sorted(differences)


def _sum(
    like: torch.Tensor,
    differences: Mapping[str, Mapping[str, torch.Tensor]],
    name: str,
    weights: Mapping[str, float],
    step: float,
) -> torch.Tensor:
    """step * sum_c weight_c * difference_c of one tensor in float32, over sites in sorted order."""
    total = torch.zeros_like(like, dtype=torch.float32)
    for site in sorted(weights):
        total.add_(differences[site][name].float(), alpha=step * weights[site])
    return total


def _norm(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> float:
    """Euclidean norm over several tensors."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensors[name].float())) ** 2 for name in names))
