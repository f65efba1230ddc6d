"""Distances, their guards, and how they are predicted between anchors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmedseg.fclopt.distance_prediction import (
    corrected,
    empty_table,
    expected,
    gaps,
    guarded,
    is_anchor,
    noted,
    ratios,
    scales,
)

PREDICTED = {"b": np.array([3.0, 4.0]), "a": np.array([1.0])}
ONLINE = {"a": torch.tensor([1.0]), "b": torch.tensor([0.0, 0.0])}


def test_a_gap_is_the_euclidean_distance_of_each_tensor_in_sorted_order() -> None:
    assert gaps(PREDICTED, ONLINE, "tensor") == [0.0, 5.0]
    assert gaps(PREDICTED, ONLINE, "global") == [5.0]


def test_it_does_not_depend_on_how_a_sum_is_cut_into_blocks() -> None:
    values = np.random.default_rng(1).normal(size=1001)
    total = 0.0
    for value in values.tolist():
        total += value * value
    assert gaps({"a": values}, {"a": torch.zeros(1001)}, "tensor") == [float(np.sqrt(total))]


def test_a_correction_puts_the_target_at_its_distance() -> None:
    chosen = scales([0.0, 4.0], gaps(PREDICTED, ONLINE, "tensor"))
    assert chosen == [1.0, 0.8]
    found = corrected(PREDICTED, ONLINE, chosen)
    assert found["b"].tolist() == pytest.approx([2.4, 3.2])
    assert found["a"].tolist() == [1.0]


def test_one_scale_serves_all_tensors() -> None:
    found = corrected(PREDICTED, ONLINE, [0.5])
    assert found["b"].tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("distance", "gap", "scale"),
    [(100.0, 1.0, 2.0), (0.1, 1.0, 0.5), (1.2, 1.0, 1.2), (5.0, 1e-9, 1.0), (0.0, 0.0, 1.0)],
)
def test_scales_are_clipped_and_nothing_is_divided_by_nothing(distance: float, gap: float, scale: float) -> None:
    """The specification's guards."""
    assert scales([distance], [gap]) == [scale]
    assert guarded([1.7], [gap]) == [1.0 if gap < 1e-8 else 1.7]


def test_ratios_are_told_as_they_are() -> None:
    assert ratios([100.0, 1.0], [1.0, 0.0]) == [100.0, 1.0]


def test_anchors_are_the_first_rounds_and_then_one_in_so_many() -> None:
    found = [number for number in range(40) if is_anchor(number, warm_up=3, every=10)]
    assert found == [0, 1, 2, 10, 20, 30]
    assert all(is_anchor(number, warm_up=1, every=1) for number in range(5))


def test_before_any_anchor_nothing_is_corrected() -> None:
    for rule in ("last", "ema", "linear"):
        assert expected(empty_table(rule, 2), 5, rule) == [1.0, 1.0]


def test_the_last_anchor_stands_until_the_next() -> None:
    table = noted(empty_table("last", 1), 2, [1.5], rule="last", momentum=0.5)
    assert table.tolist() == [[2.0, 1.5]]
    table = noted(table, 10, [1.1], rule="last", momentum=0.5)
    assert expected(table, 10, "last") == expected(table, 17, "last") == [1.1]


def test_a_moving_average_takes_each_anchor_in() -> None:
    table = noted(empty_table("ema", 1), 0, [1.0], rule="ema", momentum=0.75)
    table = noted(table, 1, [2.0], rule="ema", momentum=0.75)
    assert expected(table, 1, "ema") == [2.0], "in its own round an anchor is known, not guessed"
    assert expected(table, 2, "ema") == [1.25]


def test_a_line_goes_on_through_the_last_three_anchors() -> None:
    table = empty_table("linear", 1)
    for number, ratio in ((0, 9.0), (10, 1.0), (20, 1.1), (30, 1.2)):
        table = noted(table, number, [ratio], rule="linear", momentum=0.5)
    assert expected(table, 30, "linear") == [1.2]
    assert expected(table, 35, "linear") == pytest.approx([1.25])
    assert expected(table, 300, "linear") == [2.0], "clipped"
    first = noted(empty_table("linear", 1), 4, [0.9], rule="linear", momentum=0.5)
    assert expected(first, 8, "linear") == [0.9], "one point has no slope"
