"""Paired comparison by hand: patients, differences, and the exact distribution of small samples."""

from __future__ import annotations

import math

import pytest

from fedmedseg.reporting.paired import paired


def test_five_patients_all_better_have_the_smallest_p_that_five_can() -> None:
    """2 / 2^5: all signs alike, both sides."""
    found = paired([0.6, 0.7, 0.8, 0.9, 1.0], [0.59, 0.68, 0.77, 0.86, 0.95])
    assert (found.n, found.difference, found.p) == (5, pytest.approx(0.03), pytest.approx(2 / 32))


def test_the_direction_changes_the_difference_and_not_p() -> None:
    first, second = [0.5, 0.9, 0.4, 0.8], [0.45, 0.7, 0.5, 0.5]
    one, other = paired(first, second), paired(second, first)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p)


def test_patients_without_a_figure_are_left_out_on_both_sides() -> None:
    found = paired([0.5, math.nan, 0.7, 0.9], [0.4, 0.1, math.nan, 0.8])
    assert (found.n, found.difference) == (2, pytest.approx(0.1))


def test_no_difference_and_no_patient_are_told_apart() -> None:
    assert paired([0.5, 0.6], [0.5, 0.6]).p == 1.0
    assert math.isnan(paired([], []).p)
    with pytest.raises(ValueError, match="zip"):
        paired([0.5], [])
