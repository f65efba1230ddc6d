"""The end of a run as plain text."""

from __future__ import annotations

import pytest
import records

from fedmedseg.reporting.summary import plain_text_summary
from fedmedseg.reporting.tables import dice_table, worst_site


def test_the_summary_ends_with_mean_and_worst_site() -> None:
    lines = plain_text_summary(records.finished()).splitlines()
    assert lines[0] == "cardiac-study (fedata): finished, after 2 min 05 s, 8 rounds, 3 sites"
    assert "site-3 1" in lines[1]
    assert lines[3].split() == ["Dice", "personal", "shared", "local", "untrained"]
    assert lines[4].split() == ["site-1", "left_ventricle", "0.860", "0.820", "0.780", "0.060"]
    assert lines[-5].split() == ["mean", "over", "sites", "0.740", "0.700", "0.660", "0.013"]
    assert lines[-4].split()[:6] == ["mean", "of", "the", "worst", "site", "0.720"]
    assert lines[-3].split()[:5] == ["worst", "site", "is", "site-3", "site-3"]
    floor = "floor kept: the personal models reach a mean Dice of 0.740; they should reach 0.263"
    assert " ".join(lines[-2:]).startswith(floor)


@pytest.mark.parametrize("sites", [1, 7, 12, 60])
def test_the_summary_fits_30_lines_with_any_number_of_sites(sites: int) -> None:
    record = records.finished(tuple(f"hospital-{index}" for index in range(sites)))
    record["reason"] = "a long reason " * 40
    text = plain_text_summary(record)
    assert len(text.splitlines()) <= 30
    assert max(map(len, text.splitlines())) <= 96
    assert ("mean over sites" in text, "worst site" in text) == ((sites > 1,) * 2)
    if sites == 12:
        assert "hospital-11" in text


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("sites", [2, 60])
@pytest.mark.parametrize("name", ["hospital", "hospital-north"])
def test_the_summary_fits_a_terminal_and_names_the_worst_site(sites: int, width: int, name: str) -> None:
    record = records.finished(tuple(f"{name}-{index}" for index in range(sites)))
    record["reason"] = "one of many " * 4
    lines = plain_text_summary(record, width).splitlines()
    wide = max(20, min(width, 96))
    assert max(map(len, lines)) <= wide
    assert len(lines) <= 30 * 96 // wide
    text = " ".join(" ".join(lines).split())
    for said in ("reason: one of many one of many", "worst site is", "they should reach"):
        assert said in text
    _, _, end = text.partition("worst site is")
    for model in ("personal", "untrained"):
        site, _ = worst_site(dice_table(record), model)
        assert site in end.replace(" ", "")
    if width < 60:
        assert "mean over sites personal 0." in text


@pytest.mark.parametrize("record", [{}, {"rounds": None, "sites": None}, records.stopped()])
def test_a_run_without_evaluation_says_so(record: dict) -> None:
    assert plain_text_summary(record).endswith("no evaluation was recorded")


def test_a_stopped_run_tells_its_reason() -> None:
    assert "reason: pretraining round 1: 1 of 3" in plain_text_summary(records.stopped())


def test_a_site_that_declined_is_not_counted_as_refused() -> None:
    record = records.stopped()
    record["rounds"][1]["sites"]["site-3"]["declined"] = True
    assert "not accepted" not in plain_text_summary(record)


def test_who_took_no_part_and_how_many_cases_were_set_aside_is_told() -> None:
    record = records.finished(("site-1", "site-2"))
    evaluation = record["rounds"][-1]["sites"]
    evaluation["site-1"]["metrics"]["set_aside"] = 2.0
    evaluation["site-2"] |= {"accepted": False, "declined": True, "reason": "NO_CASES: section test", "metrics": {}}
    text = plain_text_summary(record)
    assert "took no part: site-2 (evaluation): NO_CASES: section test" in text
    assert "cases set aside: site-1 (evaluation) 2" in text
    assert "mean over 1 of 2 sites" in text


def test_a_model_that_finds_a_structure_nowhere_is_told() -> None:
    record = records.finished()
    assert "not one voxel right" not in plain_text_summary(record)
    for site in ("site-1", "site-3"):
        record["rounds"][-1]["sites"][site]["metrics"]["dice/personal/myocardium"] = 0.0
    assert (
        "not one voxel right in any test volume: personal model, myocardium, at site-1, site-3"
        in plain_text_summary(record)
    )
