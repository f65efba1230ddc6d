"""Rows and plain text say what the record says."""

from __future__ import annotations

import math

import pytest
import records

from fedmedseg.reporting.tables import (
    dice_table,
    duration,
    plain_text_summary,
    site_means,
    size,
    study_mean,
    worst_site,
)


def test_rows_come_in_the_order_of_sites_label_map_and_models() -> None:
    rows = dice_table(records.finished())
    assert len(rows) == 3 * 3 * 4
    assert [row.model for row in rows[:4]] == ["personal", "shared", "scratch", "untrained"]
    assert [row.structure for row in rows[:12:4]] == ["left_ventricle", "myocardium", "right_ventricle"]
    assert [row.site for row in rows[::12]] == ["site-1", "site-2", "site-3"]
    first = rows[0]
    assert (first.dice, first.hd95, first.failures, first.cases) == (0.86, 1.4, 0, 4)
    assert rows[3].failures == 2


def test_means_count_every_site_alike_and_name_the_worst() -> None:
    # by hand: site k has structures 0.86, 0.76, 0.66 less 0.02 k, so its mean is 0.76 - 0.02 k
    rows = dice_table(records.finished())
    assert site_means(rows, "personal") == pytest.approx({"site-1": 0.76, "site-2": 0.74, "site-3": 0.72})
    assert study_mean(rows, "personal") == pytest.approx(0.74)
    site, value = worst_site(rows, "personal") or ("", 0.0)
    assert (site, value) == ("site-3", pytest.approx(0.72))


def test_a_score_that_is_no_number_enters_no_mean() -> None:
    record = records.finished()
    metrics = record["rounds"][-1]["sites"]["site-1"]["metrics"]
    metrics["dice/personal/myocardium"], metrics["hd95/personal/myocardium"] = math.nan, None
    rows = dice_table(record)
    assert site_means(rows, "personal")["site-1"] == pytest.approx((0.86 + 0.66) / 2)
    assert next(row for row in rows if row.structure == "myocardium").hd95 is None


def test_a_rejected_evaluation_and_an_older_one_do_not_count() -> None:
    record = records.finished()
    newer = records.one_round(
        "evaluation",
        1,
        2,
        {
            "site-1": records.answer(metrics={"dice/personal/left_ventricle": 0.5}),
            "site-2": records.answer(accepted=False, metrics={"dice/personal/left_ventricle": 1.0}),
        },
    )
    record["rounds"].append(newer)
    means = site_means(dice_table(record), "personal")
    assert means["site-1"] == 0.5
    assert means["site-2"] == pytest.approx(0.74)


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
    assert "mean over sites" in text
    if sites == 12:
        assert "hospital-11" in text


@pytest.mark.parametrize("record", [{}, {"rounds": None, "sites": None}, records.stopped()])
def test_a_run_without_evaluation_says_so(record: dict) -> None:
    assert plain_text_summary(record).endswith("no evaluation was recorded")


def test_a_stopped_run_tells_its_reason() -> None:
    assert "reason: pretraining round 1: 1 of 3" in plain_text_summary(records.stopped())


def test_a_site_that_declined_is_not_counted_as_refused() -> None:
    record = records.stopped()
    record["rounds"][1]["sites"]["site-3"]["declined"] = True
    assert "not accepted" not in plain_text_summary(record)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.34, "0.3 s"), (42.4, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**31, "2.00 GiB")]
)
def test_sizes_are_written_with_binary_units(count: int, text: str) -> None:
    assert size(count) == text


def test_who_took_no_part_and_how_many_cases_were_set_aside_is_told() -> None:
    record = records.finished(("site-1", "site-2"))
    evaluation = record["rounds"][-1]["sites"]
    evaluation["site-1"]["metrics"]["set_aside"] = 2.0
    evaluation["site-2"] |= {"accepted": False, "declined": True, "reason": "NO_CASES: section test", "metrics": {}}
    text = plain_text_summary(record)
    assert "took no part: site-2 (evaluation): NO_CASES: section test" in text
    assert "cases set aside: site-1 (evaluation) 2" in text
    assert "mean over 1 of 2 sites" in text
