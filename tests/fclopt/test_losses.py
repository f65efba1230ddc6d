"""The loss against brute force, its partners and the monitor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedmedseg.fclopt.losses import regression_loss, structural_loss, structural_partners, symmetric_loss


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def test_the_loss_is_two_less_twice_the_cosine() -> None:
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    expected = sum(2 - 2 * cosine(a, b) for a, b in zip(one, other, strict=True)) / 5
    assert float(regression_loss(one, other)) == pytest.approx(expected, abs=1e-6)
    assert float(regression_loss(one, one)) == pytest.approx(0.0, abs=1e-6)
    assert float(regression_loss(one, -one)) == pytest.approx(4.0, abs=1e-6)


def test_it_is_symmetric_in_the_views() -> None:
    q, p, t, s = (torch.randn(3, 4) for _ in range(4))
    assert torch.equal(symmetric_loss(q, p, t, s), symmetric_loss(p, q, s, t))
    assert float(symmetric_loss(q, p, t, s)) == pytest.approx(float(regression_loss(q, s) + regression_loss(p, t)))


def test_no_gradient_reaches_a_target() -> None:
    prediction, target = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    regression_loss(prediction, target).backward()
    assert prediction.grad is not None
    assert target.grad is None


def test_a_partner_is_of_another_volume_in_the_same_part() -> None:
    volumes, parts = [0, 0, 1, 1, 2, 0], [0, 1, 0, 1, 0, 2]
    rng = np.random.default_rng(0)
    seen: list[set[int]] = [set() for _ in volumes]
    for _ in range(50):
        for place, partner in enumerate(structural_partners(volumes, parts, rng)):
            if partner is not None:
                seen[place].add(partner)
                assert parts[partner] == parts[place]
                assert volumes[partner] != volumes[place]
    assert seen == [{2, 4}, {3}, {0, 4}, {1}, {0, 2}, set()]


def test_the_structural_term_takes_those_that_have_a_partner() -> None:
    predictions, targets = torch.randn(3, 4), torch.randn(3, 4)
    found = structural_loss(predictions, targets, [2, None, 0])
    expected = (2 - 2 * cosine(predictions[0], targets[2]) + 2 - 2 * cosine(predictions[2], targets[0])) / 2
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert structural_loss(predictions, targets, [None, None, None]) is None
    assert structural_loss(predictions, targets, []) is None
