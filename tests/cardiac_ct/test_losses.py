"""The published loss in small numbers, its lower bound, and heads without a label."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.cardiac_ct.distillation import distilled
from fedmedseg.cardiac_ct.losses import (
    deeply_supervised,
    dice_and_cross_entropy,
    heatmap_error,
    task_loss,
)


def logits_of(label: torch.Tensor, classes: int, *, sure: float = 100.0) -> torch.Tensor:
    """Logits (B, classes, ...) that are certain of ``label``."""
    return sure * torch.nn.functional.one_hot(label, classes).movedim(-1, 1).float()


def test_two_voxels_by_hand() -> None:
    """p of the foreground 1/2 and 3/4, truth background and foreground: TP 3/4, sum of both 5/4 + 1."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])
    target = torch.tensor([[0, 1]])
    cross_entropy = -(math.log(0.5) + math.log(0.75)) / 2
    dice = (2 * 0.75 + 1) / (1.25 + 1 + 1)
    assert float(dice_and_cross_entropy(logits, target)) == pytest.approx(cross_entropy - dice, abs=1e-6)


def test_dice_is_summed_over_the_batch_and_leaves_the_background_out() -> None:
    logits, target = torch.randn(2, 3, 4, 4, 4), torch.randint(3, (2, 4, 4, 4))
    p = torch.softmax(logits, 1)
    dice = 0.0
    for number in (1, 2):
        truth = (target == number).float()
        tp, fp, fn = (
            (p[:, number] * truth).sum(),
            (p[:, number] * (1 - truth)).sum(),
            ((1 - p[:, number]) * truth).sum(),
        )
        dice += float((2 * tp + 1) / (2 * tp + fp + fn + 1)) / 2
    expected = float(torch.nn.functional.cross_entropy(logits, target)) - dice
    assert float(dice_and_cross_entropy(logits, target)) == pytest.approx(expected, abs=1e-5)


def test_the_lower_bound_is_minus_one_and_minus_seven_quarters_with_three_levels() -> None:
    """Invariant 7."""
    target = torch.randint(3, (1, 4, 4, 4))
    perfect = logits_of(target, 3)
    assert float(dice_and_cross_entropy(perfect, target)) == pytest.approx(-1.0, abs=1e-6)
    assert float(deeply_supervised([perfect] * 3, target)) == pytest.approx(-1.75, abs=1e-6)


def test_each_level_counts_half_of_the_one_before() -> None:
    target = torch.randint(2, (1, 4, 4, 4))
    first, second = torch.randn(2, 1, 2, 4, 4, 4).unbind()
    expected = task_loss(first, target) + 0.5 * task_loss(second, target)
    torch.testing.assert_close(deeply_supervised([first, second], target), expected)


def test_a_head_without_a_label_gets_no_gradient_at_all() -> None:
    """Invariant 7."""
    features = torch.randn(1, 4, 2, 2, 2)
    heads = {task: torch.nn.Conv3d(4, 2, 1) for task in ("hps", "ms", "calc")}
    logits = {task: layer(features) for task, layer in heads.items()}
    target = torch.randint(2, (1, 2, 2, 2))
    (only,) = distilled(logits, {"ms": target}, {}, {}, temperature=1.0).values()
    only.backward()
    assert all(parameter.grad is None for task in ("hps", "calc") for parameter in heads[task].parameters())
    assert all(bool(parameter.grad.any()) for parameter in heads["ms"].parameters() if parameter.grad is not None)


def test_every_labelled_head_has_its_loss_and_weight() -> None:
    logits = {task: torch.randn(1, 2, 3, 3, 3) for task in ("hps", "ms")}
    targets = {task: torch.randint(2, (1, 3, 3, 3)) for task in logits}
    each = {task: task_loss(logits[task], targets[task]) for task in logits}
    assert distilled(logits, targets, {}, {}, temperature=1.0) == each
    assert distilled(logits, targets, {}, {"ms": 0.25}, temperature=1.0) == each | {"ms": 0.25 * each["ms"]}


def test_heat_maps_are_compared_by_their_squares_and_the_background_is_not_read() -> None:
    logits = torch.zeros(1, 2, 1, 1, 2)
    logits[0, 0] = 7.0
    maps = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    assert float(heatmap_error(logits, maps)) == pytest.approx((0.25 + 0.25) / (1.0 + 1.0))
    assert float(task_loss(logits, maps)) == float(heatmap_error(logits, maps))
