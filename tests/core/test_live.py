"""What a running study tells of itself: where it is, how its sites stand, means alone, and the time left."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedmedseg.core.live import seconds_left, status

ROUNDS = {"pretraining": 3, "fine_tuning": 1}
STEPS = {"pretraining": 10, "fine_tuning": 40}


def record(stage: str, number: int, wall: float, **metrics: dict[str, float]) -> dict[str, Any]:
    """One round as ``core.rounds`` writes it, as far as it is read here."""
    sites = {site: {"metrics": values, "examples": 1, "reason": None} for site, values in metrics.items()}
    return {"stage": stage, "round": number, "wall_seconds": wall, "sites": sites}


def told(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "study": "heart", "stage": "pretraining", "number": 1, "rounds": ROUNDS, "steps": STEPS, "seconds": 4.0,
        "asked": ["a", "b", "c"], "replies": {},
        "history": [record("pretraining", 0, 20.0, a={"loss": 1.0}, b={"loss": 3.0}, c={"loss": 5.0}, d={})],
    }  # fmt: skip
    return status(**{**values, **changes})


def test_the_state_of_a_round_is_told_whole_and_as_json() -> None:
    found = told(replies={"a": {"reason": None}, "b": {"reason": "NOT_FINITE: conv.weight"}, "d": {"reason": "DENIED"}})
    assert json.loads(json.dumps(found)) == found
    assert (found["study"], found["stage"], found["round"], found["rounds"]) == ("heart", "pretraining", 1, 3)
    assert found["stages"] == ["pretraining", "fine_tuning"]
    assert found["sites"] == {"a": "replied", "b": "NOT_FINITE", "c": "at work", "d": "DENIED"}, "codes alone"


def test_figures_are_means_over_the_sites_that_let_them_out() -> None:
    """A site below its own threshold sends no figure: it neither appears nor counts."""
    found = told()
    assert found["metrics"] == {"loss": 3.0}
    assert found["metrics_of"] == {"stage": "pretraining", "round": 0}
    assert "examples" not in json.dumps(found)
    one = {"loss": 1.0}
    for others in ({}, {"loss": float("nan")}):
        nothing = told(history=[record("pretraining", 0, 20.0, a=one, b=one, c=others)])
        assert (nothing["metrics"], nothing["metrics_of"]) == ({}, None), "of two sites each would know the other's"
        assert nothing["too_few"], "and whoever looks on is told why there is none"
    assert not found["too_few"]
    assert not told(history=[])["too_few"], "no round has ended"
    assert not told(history=[record("pretraining", 0, 20.0, a={}, b={})])["too_few"], "the sites sent no figure"


def test_the_figures_of_the_last_round_that_had_any_are_told() -> None:
    one = {"loss": 1.0}
    history = [record("pretraining", 0, 9.0, a=one, b=one, c=one), record("pretraining", 1, 9.0, a=one, b={}, c={})]
    assert told(history=history)["metrics_of"] == {"stage": "pretraining", "round": 0}


@pytest.mark.parametrize(
    ("walls", "current", "left"),
    [
        ({}, 5.0, None),
        # two rounds of 20 s, less the 4 s that have gone by, and 40 steps at 2 s
        ({"pretraining": [20.0]}, 4.0, 2 * 20 - 4 + 80),
        # a round that takes longer than the others does not make the rest shorter
        ({"pretraining": [20.0]}, 99.0, 20 + 80),
        ({"pretraining": [10.0, 20.0, 30.0]}, 10.0, 80 - 10),
        ({"pretraining": [20.0] * 3, "fine_tuning": [50.0]}, 0.0, 0),
    ],
)
def test_the_time_left_follows_from_the_rounds_that_ended(
    walls: dict[str, list[float]], current: float, left: float | None
) -> None:
    assert seconds_left(rounds=ROUNDS, steps=STEPS, walls=walls, current=current) == left


def test_a_stage_that_is_left_out_takes_no_time() -> None:
    found = seconds_left(rounds={"a": 2, "b": 0}, steps={"a": 5, "b": 9}, walls={"a": [7.0]}, current=0.0)
    assert found == 7.0
