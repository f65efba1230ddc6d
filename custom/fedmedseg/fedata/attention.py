"""The server's rule: sites weighted by attention, per group of layers, from their distance to the shared model.

For group l and site c, with w_g the shared tensors and w_c the site's:

    d_c = |w_c - w_g| / (|w_g| + eps)
    z_c = d_c / mean_c(d) - 1            (0 where the mean is below eps)
    alpha_c = softmax_c(log n_c - kappa z_c)
    w_g <- w_g + eta * sum_c alpha_c (w_c - w_g)

The idea of layer-wise attention over sites is FedAtt's (Ji et al., 2019). Dividing by the mean distance instead of
standardising keeps nearly equal sites at nearly FedAvg; kappa 0 is FedAvg.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch

_BLOCK = re.compile(r"^(.+?\.blocks\.\d+|.+?\.downsample)\.")
EPSILON = 1e-12


def layer_group(name: str) -> str:
    """The group of one shared tensor: its transformer block, merging or embedding; mask token and predictor."""
    block = _BLOCK.match(name)
    if block:
        return block.group(1)
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] not in ("mask_token", "predictor") else parts[0]


def layer_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensor names by group, both sorted."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(layer_group(name), []).append(name)
    return groups


def attention_weights(distances: Mapping[str, float], counts: Mapping[str, float], *, kappa: float) -> dict[str, float]:
    """alpha per site from relative distances and case counts; they sum to 1. Sites are taken in sorted order."""
    sites = sorted(distances)
    mean = sum(distances[site] for site in sites) / len(sites)
    z = {site: distances[site] / mean - 1.0 if mean > EPSILON else 0.0 for site in sites}
    logits = {site: math.log(counts[site]) - kappa * z[site] for site in sites}
    highest = max(logits.values())
    weights = {site: math.exp(logits[site] - highest) for site in sites}
    total = sum(weights.values())
    return {site: weights[site] / total for site in sites}


def layer_attention(
    shared: Mapping[str, torch.Tensor],
    differences: Mapping[str, Mapping[str, torch.Tensor]],
    counts: Mapping[str, float],
    *,
    kappa: float,
    server_step: float = 1.0,
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """Aggregate ``differences`` (site to tensors w_c - w_g) into one difference to add to ``shared``.

    ``counts`` holds each site's number of cases, or any positive multiple of it. Sums run in float32 over sites in
    sorted order, so the result does not depend on who answered first. Returns the difference and the weights
    {group: {site: alpha}}.

    Raises:
        ValueError: no sites, a site without a positive count, or tensors that differ from ``shared``.
    """
    sites = sorted(differences)
    if not sites or any(not counts.get(site, 0) > 0 for site in sites):
        raise ValueError("an aggregation needs sites, each with a positive count")
    if any(differences[site].keys() != shared.keys() for site in sites):
        raise ValueError("every site's differences name exactly the shared tensors")
    result: dict[str, torch.Tensor] = {}
    table: dict[str, dict[str, float]] = {}
    for group, names in layer_groups(shared).items():
        norm = _norm(shared, names)
        distances = {site: _norm(differences[site], names) / (norm + EPSILON) for site in sites}
        table[group] = attention_weights(distances, counts, kappa=kappa)
        for name in names:
            total = torch.zeros_like(shared[name], dtype=torch.float32)
            for site in sites:
                total.add_(differences[site][name].float(), alpha=server_step * table[group][site])
            result[name] = total.to(shared[name].dtype)
    return result, table


def _norm(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> float:
    """Euclidean norm over several tensors."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensors[name].float())) ** 2 for name in names))
