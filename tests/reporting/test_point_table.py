"""Landmarks of a run's record as rows, in the report and in the summary at a run's end."""

from __future__ import annotations

from typing import Any

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
    "points/cnn/all points": 4.0,
    "missed/cnn/all points": 2.0,
    "distance/median/student/all points": 2.0,
    "distance/q25/student/all points": 1.0,
    "distance/q75/student/all points": 3.25,
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
        "2.0 (1.0-3.2) mm",
        "none (1.5-none) mm, 2 of 4 missed",
        "2.0 (1.0-3.2) mm",
    ]


def test_the_end_of_a_run_names_every_model_over_all_points() -> None:
    lines = point_lines(point_table({"site-1": FIGURES}), ["cnn", "student"], MODELS)
    assert lines[-1] == "site-1: CNN none (1.5-none) mm, 2 of 4 missed; transformer 2.0 (1.0-3.2) mm"
    assert point_lines([], [], MODELS) == []
    assert "transformer 2.0 (1.0-3.2) mm" in plain_text_summary(record(FIGURES))


def test_the_report_has_a_line_per_point_and_says_nothing_of_a_missing_evaluation() -> None:
    text = render(record(FIGURES), {})
    assert "Landmarks" in text
    assert "2.0 (1.0-3.2) mm" in text
    assert "No evaluation was recorded" not in text
    assert "Landmarks" not in render(record({"dice/student/calcification": 0.5}), {})
