"""FedEMA's change, factor and proportion, by hand."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.fedema import mean_change, proportion, scale


def test_the_change_is_the_mean_of_the_distances_of_the_tensors():
    """|(3, 4)| = 5 and |1| = 1; their mean is 3, whatever their sizes."""
    before = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([[2.0]])}
    after = {"a": torch.tensor([4.0, 5.0]), "b": torch.tensor([[1.0]]), "other": torch.tensor([9.0])}
    assert mean_change(before, after) == pytest.approx(3.0)


def test_the_first_change_keeps_tau_and_a_later_one_in_proportion():
    factor = scale(0.5, tau=0.7)
    assert factor == pytest.approx(1.4)
    assert [proportion(change, factor) for change in (0.5, 0.25, 10.0)] == pytest.approx([0.7, 0.35, 1.0])


def test_a_round_that_changed_nothing_sets_no_factor_and_keeps_nothing():
    assert scale(0.0, tau=0.7) is None
    assert proportion(0.0, None) == 0.0
