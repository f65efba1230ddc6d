"""Columns against columns: only what both measured is compared, and what differs besides is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import records
from html_page import Page

from fedmedseg.reporting.against import DICE, DISTANCE, HD95, changed, medians_of, pairs, reduced, scores_of, since
from fedmedseg.reporting.point_table import PointRow
from fedmedseg.reporting.points import ALL
from fedmedseg.reporting.report import render
from fedmedseg.reporting.scores import MINUS, previous_lines, signed
from fedmedseg.reporting.tables import DiceRow, dice_table


def row(site: str, structure: str, model: str, dice: float | None) -> DiceRow:
    return DiceRow(site=site, structure=structure, model=model, dice=dice, hd95=None, failures=0, cases=None)


def hd95(site: str, structure: str, model: str, value: float | None) -> DiceRow:
    return DiceRow(site=site, structure=structure, model=model, dice=None, hd95=value, failures=0, cases=None)


def median(site: str, model: str, value: float | None, point: str = ALL) -> PointRow:
    return PointRow(
        site=site, point=point, model=model, median=value, q25=None, q75=None, mean=None, missed=0, points=4
    )


def test_of_distances_less_is_better_and_what_one_of_two_lacks_counts_for_neither() -> None:
    rows = [
        hd95("a", "x", "student", 4.0),
        hd95("a", "x", "cnn", 6.0),
        hd95("a", "y", "student", 90.0),
        hd95("b", "x", "student", 3.0),
        hd95("b", "x", "cnn", 2.0),
    ]
    points = [
        median("a", "student", 1.0),
        median("a", "cnn", 1.5),
        median("a", "cnn", 0.1, point="RCC"),
        median("b", "student", None),
        median("b", "cnn", 9.0),
    ]
    surface, distance = pairs(rows, points)
    assert (surface.measure, surface.sites) == (HD95, {"a": (4.0, 6.0), "b": (3.0, 2.0)})
    assert (surface.difference, surface.ahead) == (-0.5, 1)
    assert (distance.measure, distance.sites) == (DISTANCE, {"a": (1.0, 1.5)}), "an infinite median has no difference"
    assert (distance.difference, distance.ahead) == (-0.5, 1)


def cardiac_ct(distance: float, surface: float) -> dict[str, Any]:
    metrics = {"points/student/all points": 4.0, "distance/median/student/all points": distance}
    metrics |= {"points/cnn/all points": 4.0, "distance/median/cnn/all points": 2.5}
    metrics |= {"dice/student/calcification": 0.5, "hd95/student/calcification": surface}
    rounds = [records.one_round("evaluation", 0, 1, {"a": records.answer(metrics=metrics)})]
    return {"study": "s", "sites": ["a"], "rounds": rounds, "started": f"2026-01-0{int(distance)}T00:00:00+00:00"}


def test_a_mean_over_fewer_sites_than_there_are_says_so_on_the_page_and_in_the_terminal() -> None:
    """Site b was tested then alone, and the comparison is of a."""
    now, before = cardiac_ct(2.0, 4.0), cardiac_ct(3.0, 6.0)
    now["sites"] = ["a", "b"]
    text = Page(render({**now, "previous": reduced(before)}, {})).text
    # the scores' table, model against model by distance, and three measures against the run before
    assert text.count("mean over 1 of 2 sites") == 5
    assert "mean over sites" not in text
    lines = previous_lines(now, before)
    assert lines[0] == "against the previous run, mean Dice at a, which both tested: transformer 0.000"
    assert "in mm at a, which both tested (below 0 is better)" in lines[1]
    assert "mean over 1 of 2 sites" in Page(render({**cardiac_ct(1.0, 4.0), "previous": reduced(now)}, {})).text


def test_a_run_is_not_compared_with_itself() -> None:
    now = cardiac_ct(2.0, 4.0)
    said = "both records are of the same run: there is nothing to compare"
    assert previous_lines(now, now) == [said]
    text = Page(render({**now, "previous": reduced(now)}, {})).text
    assert f"Against the previous run {said[:1].upper()}{said[1:]}." in text
    assert "better than before" not in text


def test_page_and_terminal_compare_runs_and_models_by_distances_too() -> None:
    now, before = cardiac_ct(2.0, 4.0), cardiac_ct(3.0, 6.0)
    kept = json.loads(json.dumps(reduced(before)))
    assert [(one.site, one.model, one.median) for one in medians_of(kept)] == [("a", "student", 3.0), ("a", "cnn", 2.5)]
    text = Page(render({**now, "previous": kept}, {})).text
    assert "Transformer against CNN model Median point distance in mm of one model less that of the other" in text
    assert f"site transformer less CNN a {MINUS}0.5 2.0 {MINUS} 2.5 mean {MINUS}0.5" in text
    assert "Mean HD95 in mm of this run less that of the run before, over the structures that both tested" in text
    assert f"a {MINUS}2.0 4.0 {MINUS} 6.0" in text
    assert f"a 0.0 2.5 {MINUS} 2.5 {MINUS}1.0 2.0 {MINUS} 3.0" in text
    assert previous_lines(now, before) == [
        "against the previous run, mean Dice: transformer 0.000",
        f"against the previous run, mean HD95 in mm (below 0 is better): transformer {MINUS}2.0",
        f"against the previous run, median point distance in mm (below 0 is better): CNN 0.0, transformer {MINUS}1.0",
    ]


def test_a_structure_that_one_of_two_models_lacks_counts_for_neither() -> None:
    rows = [
        row("a", "x", "personal", 0.8),
        row("a", "x", "shared", 0.7),
        row("a", "y", "personal", 0.1),
        row("a", "y", "shared", None),
        row("b", "x", "personal", 0.5),
    ]
    (one,) = pairs(rows)
    assert (one.first, one.second, one.sites) == ("personal", "shared", {"a": (0.8, 0.7)})
    assert one.measure == DICE
    assert one.difference == pytest.approx(0.1)
    assert one.ahead == 1
    assert pairs(rows[:1]) == []


def test_an_earlier_run_survives_json_and_gives_the_same_scores() -> None:
    record = records.finished()
    kept = json.loads(json.dumps(reduced(record)))
    before = scores_of(kept)
    assert [(one.site, one.structure, one.model, one.dice, one.hd95) for one in before] == [
        (one.site, one.structure, one.model, one.dice, one.hd95) for one in dice_table(record)
    ]
    assert all(one.difference == 0 for one in since(dice_table(record), before))
    assert "rounds" not in kept
    assert changed(record, kept) == []


def test_a_model_that_the_earlier_run_lacks_is_not_compared() -> None:
    now = [row("a", "x", "personal", 0.8), row("a", "x", "shared", 0.7)]
    (one,) = since(now, [row("a", "x", "shared", 0.9)])
    assert one.sites == {"a": (0.7, 0.9)}
    assert one.ahead == 0


def test_what_else_differs_is_named() -> None:
    now = {"system": "fedata", "experiment_sha256": "a", "outcome": "finished", "versions": {"torch": "2"}}
    then = {"system": "fcl", "experiment_sha256": "b", "outcome": "finished", "versions": {"flare": "1"}}
    assert changed(now, then) == [
        "system fedata, then fcl",
        "other settings",
        "flare of the server none, then 1",
        "torch of the server 2, then none",
    ]


def test_differences_have_a_sign_unless_they_round_to_nothing() -> None:
    assert [signed(value) for value in (0.0124, -0.3, 0.0004, -0.0)] == ["+0.012", f"{MINUS}0.300", "0.000", "0.000"]
