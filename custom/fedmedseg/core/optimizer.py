"""Optimisers, the course of their rate over all steps of a stage, whatever the rounds, and one step of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from fedmedseg.core.training import require_finite
from fedmedseg.core.training_settings import OptimizerSection, SGDSection


class Schedule(Protocol):
    """What ``learning_rate`` reads of an optimiser's section."""

    @property
    def learning_rate(self) -> float:
        """The highest rate."""
        ...

    @property
    def warmup_fraction(self) -> float:
        """Share of the steps in which the rate rises to it."""
        ...


def build_optimizer(groups: Iterable[dict[str, object]], section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW over parameter groups; a group may carry a ``rate_factor`` for ``set_learning_rate``."""
    return torch.optim.AdamW(
        [dict(group) for group in groups],
        lr=section.learning_rate,
        betas=section.betas,
        weight_decay=section.weight_decay,
    )


def build_sgd(parameters: Iterable[torch.nn.Parameter], section: SGDSection) -> torch.optim.SGD:
    """SGD at its section's rate, until ``set_learning_rate``."""
    return torch.optim.SGD(
        parameters, lr=section.learning_rate, momentum=section.momentum, weight_decay=section.weight_decay
    )


def learning_rate(section: Schedule, step: int, total: int) -> float:
    """Learning rate at global step ``step`` (0-based) of ``total``: linear warm-up, then cosine to zero."""
    warmup = math.ceil(section.warmup_fraction * total)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    return section.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def scheduled_rate(section: Schedule, schedule: str, step: int, total: int) -> float:
    """As ``learning_rate``, where ``schedule`` is ``constant`` without the fall after the warm-up."""
    if schedule == "constant" and step >= math.ceil(section.warmup_fraction * total):
        return section.learning_rate
    return learning_rate(section, step, total)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group ``rate`` times its own ``rate_factor`` (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def descend(
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    parameters: Iterable[torch.nn.Parameter],
    *,
    clip_norm: float | None,
) -> bool:
    """One step of ``optimizer`` down ``loss``, the gradient of ``parameters`` cut to ``clip_norm`` (None: not cut);
    whether there was one.

    There was none where the loss is not finite: the training loop raises on it, and the weights must not take it in
    before.

    Raises:
        FedMedSegError: the gradient is not finite (reason LOCAL_DIVERGED); the weights are then untouched.
    """
    if not math.isfinite(float(loss.detach())):
        return False
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
    require_finite("gradient norm", float(norm))
    optimizer.step()
    return True


def restore_optimizer(optimizer: torch.optim.Optimizer, tree: dict[str, Any]) -> None:
    """Load an optimiser's state dict, its moments laid out in memory as their parameters.

    A checkpoint holds contiguous tensors. An update of tensors that do not lie alike may differ in the last bit from
    one of tensors that do, and a training that was killed would not continue exactly.
    """
    optimizer.load_state_dict(tree)
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(moment)
