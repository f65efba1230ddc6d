"""The learning rate's course, and parameter groups of different rates."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.optimizer import (
    build_optimizer,
    descend,
    learning_rate,
    restore_optimizer,
    scheduled_rate,
    set_learning_rate,
)
from fedmedseg.core.training_settings import OptimizerSection


def section(warmup: float = 0.2) -> OptimizerSection:
    return OptimizerSection(learning_rate=0.1, weight_decay=0.01, betas=(0.8, 0.9), warmup_fraction=warmup)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.05), (1, 0.1), (2, 0.1), (6, 0.05), (4, 0.05 * (1 + math.sqrt(0.5))), (10, 0.0)],
)
def test_two_steps_of_warm_up_then_half_a_cosine(step: int, rate: float) -> None:
    assert learning_rate(section(), step, 10) == pytest.approx(rate, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(section(0.0), 0, 10) == 0.1


@pytest.mark.parametrize("total", [1, 2, 3, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
def test_the_rate_is_never_above_the_setting_nor_zero_before_the_end(total: int, warmup: float) -> None:
    rates = [learning_rate(section(warmup), step, total) for step in range(total)]
    assert all(0 < rate <= 0.1 + 1e-12 for rate in rates)


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    rates = [scheduled_rate(section(0.5), "constant", step, 4) for step in range(4)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1])
    assert {scheduled_rate(section(0.0), "constant", step, 4) for step in range(4)} == {0.1}
    falling = [scheduled_rate(section(0.5), "cosine", step, 4) for step in range(4)]
    assert falling == [learning_rate(section(0.5), step, 4) for step in range(4)]


def test_a_step_goes_down_a_gradient_of_the_given_length_and_takes_in_nothing_that_is_not_finite() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    descend(optimizer, (weight * torch.tensor([3.0, 4.0])).sum(), iter([weight]), clip_norm=1.0)
    assert weight.tolist() == pytest.approx([2.0 - 0.6, 1.0 - 0.8])
    before = weight.detach().clone()
    descend(optimizer, weight.sum() * math.inf, [weight], clip_norm=1.0)
    with pytest.raises(FedMedSegError, match="gradient norm"):
        # the loss is finite, its slope at 0 is not
        descend(optimizer, (weight - before).sum().abs().sqrt(), [weight], clip_norm=1.0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(("clip_norm", "step"), [(None, (3.0, 4.0)), (1.0, (0.6, 0.8)), (10.0, (3.0, 4.0))])
def test_without_a_norm_to_cut_to_the_whole_gradient_counts(clip_norm: float | None, step: tuple[float, float]) -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert descend(optimizer, (weight * torch.tensor([3.0, 4.0])).sum(), [weight], clip_norm=clip_norm)
    assert weight.tolist() == pytest.approx([2.0 - step[0], 1.0 - step[1]])
    assert not descend(optimizer, weight.sum() * math.nan, [weight], clip_norm=clip_norm)


def test_a_group_keeps_its_factor() -> None:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "rate_factor": 0.1}, {"params": [weights[1]]}]
    optimizer = build_optimizer(groups, section())
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]
    assert optimizer.param_groups[1]["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[1]["weight_decay"] == 0.01
    assert groups[1] == {"params": [weights[1]]}, "the caller's groups are not changed"


def test_one_step_agrees_with_adamw_worked_out_by_hand() -> None:
    """The first AdamW step moves by lr in the gradient's direction, after decay by lr * weight_decay."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([{"params": [weight]}], section())
    (3.0 * weight).sum().backward()
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.01) - 0.1, abs=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_restored_moments_lie_in_memory_as_their_parameters(layout: torch.memory_format) -> None:
    def made() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(3, 4, 5, 6).contiguous(memory_format=layout))
        return weight, build_optimizer([{"params": [weight]}], section())

    weight, optimizer = made()
    weight.square().sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"] = {
        0: {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in saved["state"][0].items()}
    }
    other, restored = made()
    restore_optimizer(restored, saved)
    for name in ("exp_avg", "exp_avg_sq"):
        moment = restored.state[other][name]
        assert moment.stride() == weight.stride() == other.stride()
        assert torch.equal(moment, optimizer.state[weight][name])
