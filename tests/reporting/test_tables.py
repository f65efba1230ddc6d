"""Rows say what the record says."""

from __future__ import annotations

import math

import pytest
import records

from fedmedseg.reporting.tables import (
    counted,
    dice_table,
    duration,
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


@pytest.mark.parametrize(("count", "text"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds")])
def test_one_is_no_plural(count: int, text: str) -> None:
    assert counted(count, "round") == text


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
