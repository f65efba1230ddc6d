"""The site's own page says that it stays, shows the worst first, and trusts no name of a file."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import site_pages
from html_page import Page

from fedmedseg.reporting.metrics import StructureScore
from fedmedseg.reporting.site_page import Cell, remove_site_page, render_site_page, structure_cell, write_site_page


def shown(**changes: Any) -> Page:
    return Page(render_site_page(site_pages.page(**changes), written=datetime(2026, 1, 2, 3, 4, tzinfo=UTC)))


def test_the_page_says_first_that_it_may_not_leave() -> None:
    text = shown().text
    assert text.index("This page may not leave hospital-1.") < text.index("heart at hospital-1")
    assert "is sent to nobody" in text
    assert "3 test cases of 2 patients" in text
    assert "models: personal, local" in text
    assert text.index("truth personal", text.index("Worst, median and best case")) > 0, "whose outline is which"
    assert "written 2026-01-02 03:04 UTC" in text


def test_cases_are_listed_by_their_files_the_worst_first_and_what_failed_once_more() -> None:
    text = shown().text
    places = [
        text.index(f"images/{name}.nii.gz {patient}") for name, patient in (("b", "Ada"), ("c", "Bea"), ("a", "Ada"))
    ]
    assert places == sorted(places)
    assert "images/b.nii.gz Ada 0.350 0.700 4.0 mm 0.000 * 88.0 mm" in text
    assert "images/c.nii.gz Bea 0.800 0.800 2.0 mm - in neither" in text
    assert "images/b.nii.gz personal right ventricle" in text
    assert "images/d.nii.gz training image without contrast" in text


def test_what_the_untrained_network_misses_is_no_failed_case() -> None:
    table = site_pages.table("untrained", {"a": (0.1, StructureScore(0.0, 3.0, 1))})
    assert "No model missed a structure whole" in shown(tables=[table], pictures=[]).text


def test_a_page_without_failures_or_pictures_says_so() -> None:
    table = site_pages.table("personal", {"a": (0.9, StructureScore(math.nan, math.nan))})
    text = shown(tables=[table], pictures=[], aside=[]).text
    assert "No model missed a structure whole" in text
    assert "None that was read so far." in text
    assert "No case has anything to judge a model by." in text


def test_a_page_of_cardiac_ct_has_points_and_calcium_beside_masks() -> None:
    """What the browser's tests open, wherever there is a browser."""
    text = Page(render_site_page(site_pages.cardiac_ct_page(), written=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))).text
    assert "RCC LCC points invented calcification calcium, mm\N{SUPERSCRIPT THREE} Agatston score" in text
    assert "1.2 mm not found * 1 * 0.920 1.0 mm 512 truth 620 430 truth 555" in text
    assert "transformer LCC, points invented" in text


def test_where_nothing_was_tested_the_page_says_why_and_what_was_set_aside() -> None:
    text = shown(tables=[], pictures=[], untested="section test: got 0 usable of 3 listed cases.").text
    assert "nothing was tested" in text
    assert "No test section test: got 0 usable of 3 listed cases." in text
    assert "images/d.nii.gz training image without contrast" in text
    assert "This page may not leave hospital-1." in text
    for part in ("Worst, median and best", "Case by case", "Failed cases", "test_scores.json"):
        assert part not in text


def test_the_page_needs_nothing_from_outside_and_a_reader_of_the_screen_finds_its_way() -> None:
    page = shown()
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3
    assert all((one["src"] or "").startswith("data:image/png;base64,") for one in images)
    assert all("outlines" in (one["alt"] or "") for one in images)
    assert [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "a")] == []
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels == [1, 2, 2, 2, 2, 2]
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_no_name_of_a_file_or_patient_becomes_markup() -> None:
    evil = "<script>alert(1)</script>\"'{{ 'eva' + 'luated' }}"
    table = site_pages.table(evil, {evil: (0.9, StructureScore(0.0, 3.0, 1))}, patient=evil)
    page = shown(site=evil, tables=[table], pictures=[], aside=[(evil, evil, evil)])
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert "evaluated" not in page.text
    assert page.text.count("<script>alert(1)</script>") > 5


@pytest.mark.parametrize(
    ("score", "cell"),
    [
        (None, Cell(text="-", under="not marked")),
        (StructureScore(math.nan, math.nan), Cell(text="-", under="in neither")),
        (StructureScore(0.8126, 3.25), Cell(text="0.813", under="3.2 mm")),
        (StructureScore(0.0, 90.0, 1), Cell(text="0.000", under="90.0 mm", failed=True)),
    ],
)
def test_a_structure_is_told_as_it_was_scored(score: StructureScore | None, cell: Cell) -> None:
    assert structure_cell(score) == cell


def test_the_page_is_one_file_of_its_folder_and_can_be_taken_away(tmp_path: Path) -> None:
    write_site_page(tmp_path, site_pages.page())
    assert [file.name for file in tmp_path.iterdir()] == ["site_report.html"]
    (tmp_path / "overlay_best.png").write_bytes(b"")
    (tmp_path / "test_scores.json").write_bytes(b"")
    remove_site_page(tmp_path, ["overlay_best.png"])
    remove_site_page(tmp_path, ["overlay_best.png"])
    assert [file.name for file in tmp_path.iterdir()] == ["test_scores.json"]
