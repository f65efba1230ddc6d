"""Small counts by hand."""

import pytest

from fedmedseg.privacy.counts import without_small

COUNTING = ("cases", "set_aside", "failures/*")


def told(metrics: dict[str, float], examples: int | None, least: int) -> tuple[dict[str, float], int | None]:
    return without_small(metrics, examples=examples, counting=COUNTING, cases="cases", least=least)


def test_counts_below_stay_and_everything_else_goes() -> None:
    metrics = {"loss": 0.5, "set_aside": 4.0, "failures/left": 5.0, "cases": 7.0}
    assert told(metrics, 6, 5) == ({"loss": 0.5, "failures/left": 5.0, "cases": 7.0}, 6)


@pytest.mark.parametrize("examples", [0, 1, 4])
def test_a_mean_over_few_cases_stays_with_their_number(examples: int) -> None:
    assert told({"loss": 0.5}, examples, 5) == ({}, None)


def test_few_test_cases_hide_the_scores_whatever_the_number_of_examples() -> None:
    assert told({"dice/left": 0.9, "cases": 2.0}, 40, 5) == ({}, 40)
    assert told({"dice/left": 0.9, "cases": 2.0}, None, 5) == ({}, None)


def test_the_threshold_itself_may_be_told() -> None:
    assert told({"cases": 5.0, "dice/left": 0.9}, 5, 5) == ({"cases": 5.0, "dice/left": 0.9}, 5)


def test_zero_is_below_a_threshold_and_nothing_is_below_none() -> None:
    assert told({"set_aside": 0.0}, 9, 1) == ({}, 9)
    assert told({"set_aside": 0.0, "loss": 1.0}, 0, 0) == ({"set_aside": 0.0, "loss": 1.0}, 0)
