"""A model of its own for every site: the mean of all sites' models, weighted by how alike their updates are.

FedAMP (Huang et al., 2021) sends site c the model u_c = sum_j xi_cj w_j and trains w_c near it. Here

    xi_c = softmax_j(cos(g_c, g_j) / T)          g_j = w_j - (what site j was sent)
    objective of site c: L(w) + prox / 2 * |w - u_c|^2

Our reconstruction: FedAMP's own weights, exp(-|w_c - w_j|^2 / sigma) times a step size, may sum to more than 1 and
leave the site itself a negative share; a softmax cannot. It knows no case counts (likeness, not size, makes a
neighbour), and a site's own share is what its cosine of 1 with itself gives: at T = 0.1 all but 5e-5 beside one site
whose update is orthogonal to its own, a half beside one whose update is the same. FedAMP's prox is the squared norm
times lambda / (2 alpha); ``prox`` stands for the quotient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fedmedseg.fedata.attention import softmax

Tensors = Mapping[str, torch.Tensor]
Table = dict[str, dict[str, float]]


def update_cosines(differences: Mapping[str, Tensors]) -> Table:
    """Cosine of the angle between every two sites' updates, over all tensors as one vector; 1 with itself.

    An update of length 0 has no direction: its cosine with any other site's is 0.
    """
    sites = sorted(differences)
    table: Table = {site: {site: 1.0} for site in sites}
    length = {site: math.sqrt(_inner(differences[site], differences[site])) for site in sites}
    for index, one in enumerate(sites):
        for other in sites[index + 1 :]:
            product = length[one] * length[other]
            cosine = _inner(differences[one], differences[other]) / product if product > 0.0 else 0.0
            table[one][other] = table[other][one] = max(-1.0, min(1.0, cosine))
    return table


def pair_weights(cosines: Mapping[str, Mapping[str, float]], *, temperature: float) -> Table:
    """xi: for each site the shares of all sites' models, non-negative and summing to 1."""
    return {
        site: softmax({other: cosine / temperature for other, cosine in cosines[site].items()})
        for site in sorted(cosines)
    }


def moved(
    shared: Tensors, starts: Mapping[str, Tensors], differences: Mapping[str, Tensors], weights: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """sum_j weight_j (w_j - w_g), with w_j the model that site j started from plus its difference.

    In float32 over sites in sorted order. Where all started from ``shared`` it is the weighted sum of differences.
    """
    result: dict[str, torch.Tensor] = {}
    for name in sorted(shared):
        total = torch.zeros_like(shared[name], dtype=torch.float32)
        for site in sorted(weights):
            start = starts[site][name]
            if start is not shared[name]:
                total.add_((start - shared[name]).float(), alpha=weights[site])
            total.add_(differences[site][name].float(), alpha=weights[site])
        result[name] = total.to(shared[name].dtype)
    return result


def personal_models(
    shared: Tensors,
    starts: Mapping[str, Tensors],
    differences: Mapping[str, Tensors],
    xi: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, torch.Tensor]]:
    """u_c of every site: tensors named as ``shared``, of new storage."""
    return {
        site: {name: shared[name] + step for name, step in moved(shared, starts, differences, xi[site]).items()}
        for site in sorted(xi)
    }


def proximal_term(tensors: Tensors, centre: Tensors, *, weight: float) -> torch.Tensor:
    """weight / 2 * |w - u|^2 over all of ``tensors``, a scalar; its gradient is weight * (w - u).

    The norm is squared, as in the method; its gradient fades as the model nears ``centre``.
    """
    gaps = torch._foreach_sub([tensors[name] for name in sorted(tensors)], [centre[name] for name in sorted(tensors)])
    return weight / 2.0 * torch.stack([gap.square().sum() for gap in gaps]).sum()


def _inner(one: Tensors, other: Tensors) -> float:
    """Inner product over all tensors."""
    return sum(float(torch.dot(one[name].reshape(-1).float(), other[name].reshape(-1).float())) for name in sorted(one))
