"""Alarms: what a record says of collapse and standstill, in as few words as there are things to say."""

from __future__ import annotations

import pytest
import records
from html_page import Page

from fedmedseg.reporting.alarms import blind, collapses, lost, missed_floor, outliers, spans, standstills
from fedmedseg.reporting.point_table import point_table
from fedmedseg.reporting.report import render
from fedmedseg.reporting.summary import plain_text_summary
from fedmedseg.reporting.tables import dice_table


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([1, 2], "1-2"), ([3, 1, 2, 7, 5, 5], "1-3, 5, 7"), ([1, 3], "1, 3")]
)
def test_numbers_are_told_as_people_write_them(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


def unchanged(*counts: int, stage: str = "training") -> list[dict[str, object]]:
    return [{"stage": stage, "round": number, "unchanged": count} for number, count in enumerate(counts)]


def test_one_round_without_a_change_is_no_standstill_and_two_are() -> None:
    assert standstills({"rounds": unchanged(0, 1, 0)}) == []
    assert standstills({"rounds": unchanged(0, 1, 2, 0)}) == ["training rounds 2-3"]
    assert standstills({"rounds": unchanged(1, 2, 0, 1, 2, 3)}) == ["training rounds 1-2, 4-6"]
    assert standstills({"rounds": [{"stage": "training", "round": 0}]}) == [], "a record of an older version"


def test_a_collapse_is_told_once_for_all_its_rounds() -> None:
    record = records.finished()
    for number in (2, 3, 5):
        record["rounds"][number]["sites"]["site-2"]["metrics"]["collapse_alarm"] = 1.0
    assert collapses(record) == ["site-2, pretraining rounds 3-4, 6"]


def test_outliers_are_told_with_their_reason() -> None:
    record = records.finished()
    record["rounds"][3]["notes"]["outliers"] = {"site-3": "7 times the median"}
    assert outliers(record) == ["pretraining round 4, site-3: 7 times the median"]


def test_a_site_that_is_unlike_the_others_again_and_again_is_told_once() -> None:
    record = records.finished()
    for number, times in enumerate((3, 5, 9)):
        record["rounds"][number]["notes"]["outliers"] = {"site-3": f"{times} times the median", "site-1": "turned"}
    assert outliers(record) == [
        "pretraining rounds 1-3, site-3: first 3 times the median, last 9 times the median",
        "pretraining rounds 1-3, site-1: turned",
    ]


def test_a_floor_is_told_only_where_it_is_missed() -> None:
    record = records.finished()
    assert missed_floor(record) is None
    for answer in record["rounds"][-1]["sites"].values():
        for name in answer["metrics"]:
            if name.startswith("dice/personal/"):
                answer["metrics"][name] = 0.1
    said = missed_floor(record)
    assert said is not None
    assert said.startswith("floor MISSED: the personal models reach a mean Dice of 0.100")
    assert missed_floor({"rounds": []}) is None


def test_models_without_a_structure_in_common_have_no_floor() -> None:
    metrics = {"dice/personal/a": 0.5, "dice/untrained/b": 0.1, "dice/scratch/b": 0.2}
    record = {"rounds": [records.one_round("evaluation", 0, 1, {"s": records.answer(metrics=metrics)})]}
    assert missed_floor(record) is None


def test_a_structure_found_nowhere_is_told_of_trained_models_alone() -> None:
    rows = dice_table(records.finished())
    assert blind(rows) == [], "untrained networks find nothing, and nobody expects it of them"
    record = records.finished()
    for site in ("site-1", "site-2"):
        record["rounds"][-1]["sites"][site]["metrics"] |= {
            "dice/scratch/left_ventricle": 0.0,
            "dice/untrained/left_ventricle": 0.0,
            "dice/shared/left_ventricle": 0.001,
        }
    assert blind(dice_table(record)) == ["local model, left_ventricle, at site-1, site-2"]


def test_points_found_nowhere_are_told_of_trained_models_where_sites_tell_how_many_were_missed() -> None:
    def site(**missed: float) -> dict[str, float]:
        figures = {f"points/{model}/{point}": 6.0 for model in ("cnn", "untrained") for point in ("RCC", "all points")}
        return figures | {f"missed/{name.replace('_', '/')}": value for name, value in missed.items()}

    rows = point_table(
        {
            "a": site(cnn_RCC=6.0, untrained_RCC=6.0) | {"missed/cnn/all points": 6.0},
            "b": site(cnn_RCC=6.0) | {"missed/cnn/all points": 5.0},
            "c": site(cnn_RCC=5.0),
            "d": site(),
        }
    )
    assert lost(rows) == ["CNN model, all points, at a", "CNN model, RCC, at b"]


def test_a_model_that_finds_no_landmark_at_all_is_an_alarm_on_the_page_and_in_the_summary() -> None:
    metrics = {"points/student/all points": 12.0, "missed/student/all points": 12.0}
    record = {"rounds": [records.one_round("evaluation", 0, 1, {"a": records.answer(metrics=metrics)})]}
    page = Page(render(record, {})).text
    assert "Found nowhere: transformer model, all points, at a: in none of the test volumes that hold it." in page
    assert "No alarm" not in page
    assert "found in no test volume: transformer model, all points, at a" in plain_text_summary(record)
    metrics["missed/student/all points"] = 11.0
    assert "No alarm" in render(record, {})
