"""Every loss term by hand, in both forms."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.fedcrld.losses import (
    EPSILON,
    contrastive_difference,
    cross_entropy,
    dice_loss,
    distillation_loss,
    history_loss,
    moon_contrast,
    segmentation_loss,
)


def voxels(*values: tuple[float, ...]) -> torch.Tensor:
    """Probabilities of each class, voxel by voxel, as (1, C, n, 1, 1)."""
    return torch.tensor(values).T.reshape(1, len(values[0]), len(values), 1, 1)


def test_dice_counts_the_background_and_smooths_by_one() -> None:
    """Class 0: (2 * 0.75 + 1) / (1.25 + 1 + 1) = 10/13; class 1: (2 * 0.5 + 1) / (0.75 + 1 + 1) = 8/11."""
    p, y = voxels((0.75, 0.25), (0.5, 0.5)), voxels((1.0, 0.0), (0.0, 1.0))
    assert float(dice_loss(p, y)) == pytest.approx(1 - (10 / 13 + 8 / 11) / 2)
    assert float(dice_loss(y, y)) == 0.0


def test_dice_of_a_structure_that_is_neither_there_nor_seen_is_perfect() -> None:
    p = voxels((1.0, 0.0), (1.0, 0.0))
    assert float(dice_loss(p, p)) == 0.0


def test_corrected_cross_entropy_is_that_of_the_label() -> None:
    p, y = voxels((0.75, 0.25), (0.5, 0.5)), voxels((1.0, 0.0), (0.0, 1.0))
    assert float(cross_entropy(p, y, form="corrected")) == pytest.approx(
        -(math.log(0.75) + math.log(0.5)) / 2, abs=1e-5
    )


@pytest.mark.parametrize("p_y", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("classes", [2, 4, 5])
def test_published_cross_entropy_of_a_one_hot_label_is_linear(p_y: float, classes: int) -> None:
    """(1 - p_y) 13.8155 / C per voxel."""
    p = voxels((p_y, *[(1 - p_y) / (classes - 1)] * (classes - 1)))
    y = voxels((1.0, *[0.0] * (classes - 1)))
    literal = float(cross_entropy(p, y, form="published"))
    assert literal == pytest.approx((1 - p_y) * 13.8155 / classes, abs=1e-4)
    assert -math.log(EPSILON) == pytest.approx(13.8155, abs=1e-4)
    assert float(cross_entropy(p, y, form="corrected")) == pytest.approx(-math.log(p_y), abs=1e-4)
    assert literal != pytest.approx(-math.log(p_y), abs=1e-2)


def test_segmentation_is_dice_and_cross_entropy() -> None:
    p, y = voxels((0.75, 0.25), (0.5, 0.5)), voxels((1.0, 0.0), (0.0, 1.0))
    for form in ("corrected", "published"):
        whole = segmentation_loss(p, y, form=form)
        assert float(whole) == pytest.approx(float(dice_loss(p, y) + cross_entropy(p, y, form=form)))


def test_distillation_is_least_where_client_and_bank_agree_and_knows_no_gradient_of_the_bank() -> None:
    bank = voxels((0.7, 0.3)).requires_grad_()
    client = [voxels((p, 1 - p)) for p in (0.5, 0.7, 0.9)]
    losses = [float(distillation_loss(one, bank, form="corrected")) for one in client]
    assert losses[1] == min(losses)
    assert losses[1] == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)), abs=1e-5)
    leaf = client[0].requires_grad_()
    distillation_loss(leaf, bank, form="corrected").backward()
    assert bank.grad is None
    assert leaf.grad is not None


def test_history_is_the_squared_distance_of_both_bottlenecks() -> None:
    """Distances 1 and 2 everywhere: 1 + 4."""
    zero = torch.zeros(1, 2, 1, 2, 2)
    bank = (zero + 1).requires_grad_()
    assert float(history_loss(zero, zero, bank, zero + 2)) == pytest.approx(5.0)
    leaf = zero.clone().requires_grad_()
    history_loss(leaf, zero, bank, zero + 2).backward()
    assert bank.grad is None
    assert leaf.grad is not None


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_the_corrected_difference_is_the_divergence_over_positions_averaged_over_channels() -> None:
    """Channel 0: (1/2, 1/2) and (3/4, 1/4), channel 1 equal: half of 1/2 [KL + KL] = 1/2 [1/4 ln 3] / 2."""
    local = torch.stack([logs(0.5, 0.5), logs(0.5, 0.5)]).reshape(1, 2, 1, 2, 1)
    shared = torch.stack([logs(0.75, 0.25), logs(0.5, 0.5)]).reshape(1, 2, 1, 2, 1)
    there = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    back = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert there + back == pytest.approx(math.log(3) / 4)
    found = float(contrastive_difference(local, shared, form="corrected"))
    assert found == pytest.approx(0.5 * (there + back) / 2, abs=1e-6)
    # positions lie on another axis than the last, of which the published form knows one alone
    assert float(contrastive_difference(local, shared, form="published")) == pytest.approx(0.0, abs=1e-7)


def test_the_published_difference_is_over_the_last_axis_and_averaged_over_elements() -> None:
    local, shared = logs(0.5, 0.5).reshape(1, 1, 1, 1, 2), logs(0.75, 0.25).reshape(1, 1, 1, 1, 2)
    row = 0.5 * math.log(3) / 4
    assert float(contrastive_difference(local, shared, form="corrected")) == pytest.approx(row, abs=1e-6)
    assert float(contrastive_difference(local, shared, form="published")) == pytest.approx(row / 2, abs=1e-6)


@pytest.mark.parametrize("form", ["corrected", "published"])
def test_the_difference_is_symmetric_zero_for_equals_and_moves_both_encoders(form) -> None:
    generator = torch.Generator().manual_seed(1)
    one = torch.randn(1, 3, 2, 2, 2, generator=generator).requires_grad_()
    other = torch.randn(1, 3, 2, 2, 2, generator=generator).requires_grad_()
    there, back = contrastive_difference(one, other, form=form), contrastive_difference(other, one, form=form)
    assert float(there) == pytest.approx(float(back), abs=1e-6)
    assert float(there) > 0
    assert float(contrastive_difference(one, one, form=form)) == pytest.approx(0.0, abs=1e-6)
    there.backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in (one, other))


def test_moon_pulls_to_the_global_and_pushes_from_the_bank() -> None:
    """cos 1 to the global, 0 to the bank, t = 1/2: -log(e^2 / (e^2 + 1))."""
    x = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1)
    y = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1)
    near = float(moon_contrast(x, x, y, temperature=0.5))
    assert near == pytest.approx(math.log1p(math.exp(-2.0)), abs=1e-6)
    assert float(moon_contrast(x, y, x, temperature=0.5)) == pytest.approx(2.0 + near, abs=1e-6)
    assert float(moon_contrast(x, x, x, temperature=0.5)) == pytest.approx(math.log(2), abs=1e-6)
