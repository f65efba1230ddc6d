"""Which cases are drawn, by which model, and that pictures of an earlier test do not stand for those of this one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedmedseg.reporting.metrics import CaseScore, StructureScore
from fedmedseg.segmentation.pictures import chosen, judge, place_pictures, standing


@pytest.mark.parametrize(
    ("standings", "places"),
    [
        ([0.5, 0.2, math.nan, 0.9], {"worst": 1, "median": 0, "best": 3}),
        ([0.4, 0.3, 0.2, 0.1], {"worst": 3, "median": 2, "best": 0}),
        ([0.1, 0.7], {"worst": 0, "best": 1}),
        ([0.3], {"best": 0}),
        ([math.nan], {}),
    ],
)
def test_worst_median_and_best_are_drawn_each_once(standings: list[float], places: dict[str, int]) -> None:
    assert chosen(standings) == places


def test_a_case_stands_by_the_structures_it_has() -> None:
    there, absent = StructureScore(0.8, 2.0), StructureScore(math.nan, math.nan)
    assert standing(CaseScore("k", "p", {"a": there, "b": StructureScore(0.4, 9.0), "c": absent})) == pytest.approx(0.6)
    assert math.isnan(standing(CaseScore("k", "p", {"c": absent})))
    assert math.isnan(standing(CaseScore("k", "p", {})))


@pytest.mark.parametrize(
    ("starts", "first"),
    [
        (["shared", "personal", "scratch"], "personal"),
        (["scratch", "shared"], "shared"),
        (["continued", "scratch"], "continued"),
        (["scratch"], "scratch"),
    ],
)
def test_the_trained_model_judges(starts: list[str], first: str) -> None:
    assert judge(starts) == first


def test_pictures_of_an_earlier_test_with_more_cases_go(tmp_path: Path) -> None:
    place_pictures(tmp_path, {"worst": b"1", "median": b"2", "best": b"3"})
    place_pictures(tmp_path, {"best": b"4"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"overlay_best.png": b"4"}
