"""Landmarks of a run's record as rows, in the report and in the summary at a run's end."""

from __future__ import annotations

from typing import Any

from html_page import Page

from fedmedseg.reporting.point_table import point_lines, point_table
from fedmedseg.reporting.report import render
from fedmedseg.reporting.summary import plain_text_summary
from fedmedseg.reporting.tables import MODELS

FIGURES = {
    "distance/median/student/RCC": 2.0,
    "distance/q25/student/RCC": 1.0,
    "distance/q75/student/RCC": 3.25,
    "distance/mean/student/RCC": 2.1,
    "points/student/RCC": 4.0,
    "missed/student/RCC": 0.0,
    "distance/q25/cnn/all points": 1.5,
    "distance/mean/cnn/all points": 3.0,
    "points/cnn/all points": 4.0,
    "missed/cnn/all points": 2.0,
    "distance/median/student/all points": 2.0,
    "distance/q25/student/all points": 1.0,
    "distance/q75/student/all points": 3.25,
    "distance/mean/student/all points": 2.2,
    "points/student/all points": 4.0,
    "missed/student/all points": 0.0,
}


def record(figures: dict[str, float]) -> dict[str, Any]:
    answer = {"accepted": True, "metrics": figures}
    return {
        "study": "s",
        "system": "cardiac_ct",
        "outcome": "finished",
        "sites": ["site-1"],
        "rounds": [{"stage": "evaluation", "round": 0, "sites": {"site-1": answer}}],
    }


def test_a_figure_that_is_infinite_says_so_and_how_many_were_missed() -> None:
    rows = point_table({"site-1": FIGURES})
    assert [(row.model, row.point) for row in rows] == [
        ("student", "RCC"),
        ("cnn", "all points"),
        ("student", "all points"),
    ]
    assert [row.told for row in rows] == [
        "2.0 (1.0-3.2), mean 2.1 mm",
        "none (1.5-none), mean 3.0 mm, 2 of 4 missed",
        "2.0 (1.0-3.2), mean 2.2 mm",
    ]


def test_a_point_that_was_found_nowhere_is_no_row_of_nones() -> None:
    nowhere = {"points/student/RCC": 4.0, "missed/student/RCC": 4.0}
    (row,) = point_table({"site-1": nowhere})
    assert row.told == "none, none found, 4 of 4 missed"


def test_how_many_were_missed_is_not_known_where_a_site_withholds_it() -> None:
    """A count below ``min_count``, 1 to 4 by default, or 0."""
    figures = {name: value for name, value in FIGURES.items() if name != "missed/cnn/all points"}
    (row,) = [row for row in point_table({"site-1": figures}) if row.model == "cnn"]
    assert row.missed is None
    assert row.told == "none (1.5-none), mean 3.0 mm, missed: withheld"
    legend = "site-1: numbers of points missed are withheld where they are small, so that none shown does not mean none"
    assert f"{legend}." in Page(render(record(figures), {})).text
    assert legend in " ".join(plain_text_summary(record(figures)).split())
    assert "points missed are withheld" not in render(record(FIGURES), {})
    assert "withheld" not in plain_text_summary(record(FIGURES))


def test_the_end_of_a_run_names_every_model_over_all_points() -> None:
    lines = point_lines(point_table({"site-1": FIGURES}), ["cnn", "student"], MODELS)
    told = "site-1: CNN none (1.5-none), mean 3.0 mm, 2 of 4 missed; transformer 2.0 (1.0-3.2), mean 2.2 mm"
    assert lines[-1] == told
    assert point_lines([], [], MODELS) == []
    summary = plain_text_summary(record(FIGURES))
    assert told in " ".join(summary.split()), "the whole of it, in as many lines as it takes"
    assert max(map(len, summary.splitlines())) <= 96


def test_of_many_sites_the_summary_tells_points_as_far_as_there_is_room() -> None:
    whole = record({**FIGURES, "dice/student/calcification": 0.5})
    answer = whole["rounds"][0]["sites"]["site-1"]
    whole |= {"sites": [f"site-{number}" for number in range(40)]}
    whole["rounds"][0]["sites"] = dict.fromkeys(whole["sites"], answer)
    lines = plain_text_summary(whole).splitlines()
    assert len(lines) == 30
    assert lines[-1] == "... and more of points and calcium in the report"
    assert any(line.startswith("site-0 ") for line in lines), "masks are not crowded out"


def test_the_report_has_a_line_per_point_and_says_nothing_of_a_missing_evaluation() -> None:
    text = Page(render(record(FIGURES), {})).text
    assert "Landmarks" in text
    assert "site-1 all points none (1.5-none) mean 3.0 mm, 2 of 4 missed 2.0 (1.0-3.2) mean 2.2 mm" in text
    assert "No evaluation was recorded" not in text
    assert "Landmarks" not in render(record({"dice/student/calcification": 0.5}), {})
