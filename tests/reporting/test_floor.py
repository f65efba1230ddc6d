"""The floor holds and breaks where the two bounds say, on exact numbers."""

from __future__ import annotations

import pytest

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.reporting.floor import FloorRow, floor, judged, overall, verdict


def figures(personal, untrained, scratch, structure="lv"):
    return {
        f"dice/personal/{structure}": personal,
        f"dice/untrained/{structure}": untrained,
        f"dice/scratch/{structure}": scratch,
    }


@pytest.mark.parametrize(
    ("personal", "untrained", "scratch", "holds"),
    [
        (0.80, 0.05, 0.78, True),
        (0.30, 0.05, 0.35, True),  # both bounds met exactly
        (0.29, 0.05, 0.30, False),  # 0.24 above untrained
        (0.70, 0.05, 0.76, False),  # 0.06 below scratch
        (0.90, 0.70, 0.10, False),
    ],
)
def test_the_floor_holds_from_a_quarter_above_untrained_and_a_twentieth_below_scratch(
    personal, untrained, scratch, holds
):
    (row,) = floor({"site-1": figures(personal, untrained, scratch)})
    assert row.holds is holds


def test_means_are_taken_over_structures_and_sites_are_sorted():
    results = {
        "site-2": figures(0.9, 0.0, 0.9),
        "site-1": figures(0.8, 0.1, 0.7, "lv")
        | figures(0.4, 0.0, 0.5, "rv")
        | {"hd95/personal/lv": 70.0, "cases": 3.0},
    }
    first, second = floor(results)
    assert [first.site, second.site] == ["site-1", "site-2"]
    assert (first.trained, first.untrained, first.scratch) == pytest.approx((0.6, 0.05, 0.6))
    assert first.structures == 2


def test_a_structure_that_only_one_model_scores_is_left_out():
    results = figures(0.8, 0.1, 0.7) | {"dice/untrained/ghost": 0.0}
    (row,) = floor({"site-1": results})
    assert (row.untrained, row.structures) == (pytest.approx(0.1), 1)


def test_a_model_name_that_begins_like_another_is_not_mistaken_for_it():
    results = figures(0.8, 0.1, 0.7) | {"dice/personal-old/lv": 0.0}
    assert floor({"s": results})[0].trained == pytest.approx(0.8)


def test_other_names_of_the_trained_model_are_possible():
    results = {"dice/shared/lv": 0.6, "dice/untrained/lv": 0.0, "dice/scratch/lv": 0.6}
    assert floor({"s": results}, trained="shared")[0].holds


@pytest.mark.parametrize("results", [{}, {"site-1": {"dice/personal/lv": 0.9, "dice/scratch/lv": 0.9}}])
def test_nothing_to_compare_is_an_error_and_not_a_pass(results):
    with pytest.raises(ConfigurationError, match="floor"):
        floor(results)


def test_the_run_as_a_whole_is_the_mean_over_sites() -> None:
    """By hand: (0.6 + 0.8) / 2 = 0.7, (0.1 + 0.3) / 2 = 0.2, (0.7 + 0.7) / 2 = 0.7."""
    run = overall([FloorRow("a", 0.6, 0.1, 0.7, 2), FloorRow("b", 0.8, 0.3, 0.7, 3)])
    assert (run.trained, run.untrained, run.scratch) == pytest.approx((0.7, 0.2, 0.7))
    assert run.structures == 2
    assert run.holds
    with pytest.raises(ConfigurationError):
        overall([])


@pytest.mark.parametrize(("trained", "word"), [(0.66, "kept"), (0.64, "MISSED")])
def test_the_verdict_says_in_words_whether_the_floor_holds(trained: float, word: str) -> None:
    figures = {"dice/personal/x": trained, "dice/untrained/x": 0.1, "dice/scratch/x": 0.7}
    run = judged({"a": figures})
    assert run is not None
    assert verdict(run).startswith(
        f"floor {word}: the personal models reach a mean Dice of {trained:.3f}; they should reach 0.350 "
        "(0.25 more than untrained networks, 0.100) and 0.650 (at most 0.05 less than local ones, 0.700)."
    )


@pytest.mark.parametrize(
    ("trained", "why"),
    [
        (0.063, " They have hardly learned to segment: expected of a short trial, else look at data and rounds."),
        (0.40, " What was trained before helps less than the same training without it."),
        (0.66, ""),
    ],
)
def test_a_missed_floor_says_what_it_means(trained: float, why: str) -> None:
    assert verdict(FloorRow("all sites", trained, 0.1, 0.7, 1)).partition("ones, 0.700).")[2] == why


def test_nothing_is_judged_without_the_models_it_compares() -> None:
    assert judged({}) is None
    assert judged({"a": {"dice/personal/x": 0.7, "dice/untrained/x": 0.1}}) is None
