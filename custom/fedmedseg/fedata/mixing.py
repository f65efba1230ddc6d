"""Adaptive local aggregation: a site learns how much of the server's tensors it takes.

FedALA (Zhang et al., 2023) with the pretext loss as its objective, by default on the tensors of self-attention alone:

    w = w_c + (w_g - w_c) * W          W in [0, 1], 1 at first
    W <- clip(W - eta * dL/dw * (w_g - w_c), 0, 1)

w_c is the site's model of its previous round and stays fixed here, as w_g does; only W moves. Where elements share a
weight (``grain``), its gradient is the sum of theirs. That this scope and this objective are what the paper means by
drawing the site's own representation from the aggregated model is our reading of its abstract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from fedmedseg.core.training import Aborted, require_finite
from fedmedseg.fedata.grain import Grain, element
from fedmedseg.fedata.mixing_config import ALASection

Tensors = dict[str, torch.Tensor]
Gradient = Callable[[int, Mapping[str, torch.Tensor]], tuple[float, Mapping[str, torch.Tensor]]]
"""Loss of one batch, by its number, at the given tensors, and the loss's gradients for them."""


@dataclass(frozen=True)
class Mixture:
    """Outcome of the mixing: initial tensors, mixing weights to remember, figures to report."""

    tensors: Tensors
    weights: Tensors
    figures: dict[str, float] = field(default_factory=dict)


def mix(
    local: Mapping[str, torch.Tensor],
    shared: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    grains: Mapping[str, Grain] | None = None,
) -> Tensors:
    """w_c + (w_g - w_c) * W for every tensor of ``weights``; exactly w_g where W is 1 and w_c where it is 0.

    ``grains`` says which elements share a weight; without, none do.
    """
    grains = _elements(shared, weights) if grains is None else grains
    return {name: grains[name].lerp(local[name], shared[name], weights[name]) for name in weights}


def weight_gradients(
    gradients: Mapping[str, torch.Tensor],
    local: Mapping[str, torch.Tensor],
    shared: Mapping[str, torch.Tensor],
    grains: Mapping[str, Grain],
    *,
    normalise: bool,
) -> Tensors:
    """dL/dW = the sum of dL/dw * (w_g - w_c) over the elements that share a weight.

    ``normalise`` divides all of them by the largest absolute value among them, where that is not 0.
    """
    found = {name: grains[name].gather(gradients[name] * (shared[name] - local[name])) for name in grains}
    if normalise:
        largest = max(float(gradient.abs().max()) for gradient in found.values())
        if largest > 0.0:
            found = {name: gradient / largest for name, gradient in found.items()}
    return found


def next_weights(
    weights: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    local: Mapping[str, torch.Tensor],
    shared: Mapping[str, torch.Tensor],
    *,
    step: float,
    grains: Mapping[str, Grain] | None = None,
    normalise: bool = False,
) -> Tensors:
    """One descent step of W, clipped to [0, 1]; ``gradients`` are those of the mixed tensors."""
    grains = _elements(shared, weights) if grains is None else grains
    found = weight_gradients(gradients, local, shared, grains, normalise=normalise)
    return {name: (weights[name] - step * found[name]).clamp(0.0, 1.0) for name in weights}


def learn_mixture(
    *,
    local: Mapping[str, torch.Tensor],
    shared: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None,
    gradient: Gradient,
    batches: int,
    section: ALASection,
    grains: Mapping[str, Grain] | None = None,
    aborted: Callable[[], bool] = lambda: False,
) -> Mixture:
    """Learn W over ``batches`` fixed batches: one pass, or at the first use until the loss settles.

    ``local`` and ``shared`` hold the tensors in scope; ``weights`` is W of the site's last use, None at its first;
    ``grains`` says which elements share a weight (none without).

    Raises:
        Aborted: between two batches.
        FedMedSegError: loss or weights are not finite (reason LOCAL_DIVERGED).
    """
    passes = section.first_passes_max if weights is None else 1
    grains = _elements(shared, shared) if grains is None else grains
    current: Tensors = {name: grains[name].ones(shared[name]) for name in shared} if weights is None else dict(weights)
    losses: list[float] = []
    for _ in range(passes):
        total = 0.0
        for batch in range(batches):
            if aborted():
                raise Aborted
            loss, gradients = gradient(batch, mix(local, shared, current, grains))
            total += require_finite("mixing/loss", loss)
            current = next_weights(
                current, gradients, local, shared, step=section.step, grains=grains, normalise=section.normalise
            )
        losses.append(total / batches)
        if settled(losses, section.threshold):
            break
    figures = {
        "mixing/passes": float(len(losses)),
        "mixing/loss_first": losses[0],
        "mixing/loss_last": losses[-1],
        # a gradient that is not a number makes a weight that is not one, whatever the loss was
        "mixing/weight_mean": require_finite("mixing/weight_mean", mean_weight(current, shared)),
    }
    return Mixture(mix(local, shared, current, grains), current, figures)


def mean_weight(weights: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor]) -> float:
    """Mean of W over all elements of the mixed tensors, each with the weight it shares."""
    elements = {name: shared[name].numel() for name in weights}
    total = sum(float(tensor.double().sum()) * (elements[name] // tensor.numel()) for name, tensor in weights.items())
    return total / sum(elements.values())


def settled(losses: list[float], threshold: float) -> bool:
    """Whether the last pass changed the loss by less than ``threshold`` of the pass before it."""
    return len(losses) > 1 and abs(losses[-1] - losses[-2]) < threshold * abs(losses[-2])


def _elements(shared: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, Grain]:
    """No two elements share a weight."""
    return {name: element(shared[name].shape) for name in names}
