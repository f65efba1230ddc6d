"""Columns against columns: only what both measured is compared, and what differs besides is named."""

from __future__ import annotations

import json

import pytest
import records

from fedmedseg.reporting.against import changed, pairs, reduced, scores_of, since
from fedmedseg.reporting.scores import MINUS, signed
from fedmedseg.reporting.tables import DiceRow, dice_table


def row(site: str, structure: str, model: str, dice: float | None) -> DiceRow:
    return DiceRow(site=site, structure=structure, model=model, dice=dice, hd95=None, failures=0, cases=None)


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
        "flare none, then 1",
        "torch 2, then none",
    ]


def test_differences_have_a_sign_unless_they_round_to_nothing() -> None:
    assert [signed(value) for value in (0.0124, -0.3, 0.0004, -0.0)] == ["+0.012", f"{MINUS}0.300", "0.000", "0.000"]
