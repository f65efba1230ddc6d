"""Personal initialisation: a site learns how much of the server's attention tensors it takes.

Adaptive local aggregation (FedALA, Zhang et al., 2023) with the pretext loss as its objective, on the tensors of
self-attention alone:

    w = w_c + (w_g - w_c) * W          W in [0, 1], element by element, 1 at first
    W <- clip(W - eta * dL/dw * (w_g - w_c), 0, 1)

w_c is the site's model of its previous round and stays fixed here, as w_g does; only W moves. That this scope and
this objective are what the paper means by drawing the site's own representation from the aggregated model is our
reading of its abstract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from fedmedseg.core.training import Aborted, require_finite
from fedmedseg.fedata.config import ALASection

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
    local: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> Tensors:
    """w_c + (w_g - w_c) * W for every tensor of ``weights``; exactly w_g where W is 1 and w_c where it is 0."""
    return {name: torch.lerp(local[name], shared[name], weights[name]) for name in weights}


def next_weights(
    weights: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    local: Mapping[str, torch.Tensor],
    shared: Mapping[str, torch.Tensor],
    *,
    step: float,
) -> Tensors:
    """One descent step of W, clipped to [0, 1]."""
    return {
        name: (weights[name] - step * gradients[name] * (shared[name] - local[name])).clamp(0.0, 1.0)
        for name in weights
    }


def learn_mixture(
    *,
    local: Mapping[str, torch.Tensor],
    shared: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None,
    gradient: Gradient,
    batches: int,
    section: ALASection,
    aborted: Callable[[], bool] = lambda: False,
) -> Mixture:
    """Learn W over ``batches`` fixed batches: one pass, or at the first use until the loss settles.

    ``local`` and ``shared`` hold the tensors in scope; ``weights`` is W of the site's last use, None at its first.

    Raises:
        Aborted: between two batches.
        FedMedSegError: the loss is not finite (reason LOCAL_DIVERGED).
    """
    passes = section.first_passes_max if weights is None else 1
    current: Tensors = {name: torch.ones_like(shared[name]) for name in shared} if weights is None else dict(weights)
    losses: list[float] = []
    for _ in range(passes):
        total = 0.0
        for batch in range(batches):
            if aborted():
                raise Aborted
            loss, gradients = gradient(batch, mix(local, shared, current))
            total += require_finite("mixing/loss", loss)
            current = next_weights(current, gradients, local, shared, step=section.step)
        losses.append(total / batches)
        if settled(losses, section.threshold):
            break
    elements = sum(tensor.numel() for tensor in current.values())
    figures = {
        "mixing/passes": float(len(losses)),
        "mixing/loss_first": losses[0],
        "mixing/loss_last": losses[-1],
        "mixing/weight_mean": sum(float(tensor.double().sum()) for tensor in current.values()) / elements,
    }
    return Mixture(mix(local, shared, current), current, figures)


def settled(losses: list[float], threshold: float) -> bool:
    """Whether the last pass changed the loss by less than ``threshold`` of the pass before it."""
    return len(losses) > 1 and abs(losses[-1] - losses[-2]) < threshold * abs(losses[-2])
