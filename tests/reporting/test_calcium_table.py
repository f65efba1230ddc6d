"""Errors in calcium of a run's record, in the report and in the summary at a run's end."""

from __future__ import annotations

from typing import Any

import records
from html_page import Page

from fedmedseg.reporting.calcium_table import calcium_lines, calcium_table
from fedmedseg.reporting.report import render
from fedmedseg.reporting.summary import plain_text_summary
from fedmedseg.reporting.tables import MODELS

FIGURES = {
    "dice/student/calcification": 0.5,
    "calcium/volume_error/student": 12.34,
    "calcium/agatston_error/student": 40.0,
    "calcium/agatston_error/cnn": 7.0,
}


def record(figures: dict[str, float]) -> dict[str, Any]:
    rounds = [records.one_round("evaluation", 0, 1, {"site-1": records.answer(metrics=figures)})]
    return {"study": "s", "system": "cardiac_ct", "outcome": "finished", "sites": ["site-1"], "rounds": rounds}


def test_rows_have_what_a_site_told() -> None:
    student, cnn = calcium_table({"site-1": FIGURES, "site-2": {"dice/student/x": 1.0}})
    assert (student.site, student.model, student.volume, student.agatston) == ("site-1", "student", 12.34, 40.0)
    assert (cnn.model, cnn.volume, cnn.agatston) == ("cnn", None, 7.0)


def test_page_and_summary_tell_both_errors_in_their_units() -> None:
    text = Page(render(record(FIGURES), {})).text
    assert "Mean absolute error of calcium site error of CNN transformer" in text
    assert "site-1 volume, mm\N{SUPERSCRIPT THREE} - 12.3 site-1 Agatston score 7.0 40.0" in text
    assert "site-1: CNN - mm3, score 7.0; transformer 12.3 mm3, score 40.0" in plain_text_summary(record(FIGURES))
    assert "calcium" not in render(record({"dice/student/calcification": 0.5}), {})
    assert calcium_lines([], [], MODELS) == []
