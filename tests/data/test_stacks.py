"""Stacks of slices and the figures that sites tell of them."""

import numpy as np
import pytest

from fedmedseg.data.stacks import COVERAGE, DIRECTION, SLICES, Stack, mismatches, stack_figures, stack_of

UP = (0.0, 0.0, 1.0)


def test_a_stack_is_read_from_the_affine() -> None:
    affine = np.diag([1.5, 1.5, 0.0, 1.0])
    affine[:3, 2] = (6.0, 0.0, 8.0)
    stack = stack_of(affine, 9)
    assert (stack.slices, stack.thickness, stack.coverage) == (9, 10.0, 90.0)
    assert stack.normal == pytest.approx((0.6, 0.0, 0.8))


def test_figures_are_medians_rounded_so_that_they_are_of_nobody() -> None:
    stacks = [Stack(slices=count, thickness=8.3, normal=UP) for count in (7, 9, 12)]
    assert stack_figures(stacks) == {COVERAGE: 70.0, SLICES: 9.0, DIRECTION: 1.0}


def test_volumes_that_run_the_other_way_lower_the_share() -> None:
    stacks = [Stack(slices=9, thickness=8.0, normal=UP)] * 6 + [Stack(slices=9, thickness=8.0, normal=(0, 0, -1.0))]
    # six of seven, in tenths and rounded down
    assert stack_figures(stacks)[DIRECTION] == 0.8
    opposite = [Stack(slices=9, thickness=8.0, normal=normal) for normal in (UP, (0, 0, -1.0))]
    assert stack_figures(opposite)[DIRECTION] == 0.0


def test_a_tilt_of_some_degrees_is_the_same_direction() -> None:
    tilted = [Stack(slices=9, thickness=8.0, normal=normal) for normal in (UP, (0.5, 0.0, 0.866), (0.0, 0.5, 0.866))]
    assert stack_figures(tilted)[DIRECTION] == 1.0


def test_sites_alike_are_not_warned_of() -> None:
    sites = {"a": {COVERAGE: 80.0, SLICES: 8.0, DIRECTION: 1.0}, "b": {COVERAGE: 120.0, SLICES: 12.0, DIRECTION: 0.8}}
    assert mismatches(sites, factor=2.0) == []


@pytest.mark.parametrize(("figure", "words"), [(COVERAGE, "cover 40 mm at b and 120 mm at a"), (SLICES, "have 40 sl")])
def test_a_median_beyond_the_factor_is_told_with_both_sites(figure: str, words: str) -> None:
    said = mismatches({"a": {figure: 120.0}, "b": {figure: 40.0}, "c": {figure: 70.0}, "silent": {}}, factor=2.0)
    assert len(said) == 1
    assert words in said[0]
    assert mismatches({"a": {figure: 120.0}, "b": {figure: 40.0}}, factor=3.0) == []


def test_a_site_whose_volumes_run_both_ways_is_told() -> None:
    assert mismatches({"a": {DIRECTION: 0.7}, "b": {DIRECTION: 0.9}}, factor=2.0) == [
        "parts may not correspond: only 70% of the volumes at a run one way"
    ]
