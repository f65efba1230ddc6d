"""Time left: steps at their pace, tasks at their cost."""

from __future__ import annotations

from fedmedseg.core.estimate import Estimate


def event(time: float, step: int, *, site: str = "a", stage: str = "train", round: int = 0) -> dict:
    return {"time": time, "site": site, "stage": stage, "round": round, "work": stage, "step": step}


def test_nothing_is_known_before_a_second_step() -> None:
    estimate = Estimate(steps={"train": 11}, rounds={"train": 2}, sites=1, threads=1)
    assert estimate.left() is None
    estimate.add(event(100.0, 1))
    assert estimate.left() is None


def test_the_rest_is_steps_at_their_pace_and_tasks_at_their_cost() -> None:
    """By hand: 10 steps in 20 s are 2 s each; 5 s lie between the first task's end and the second's start; after
    the second task's first step 10 steps of it (20 s) and one task (11 steps, 22 s, and 5 s / 2 tasks) are left."""
    estimate = Estimate(steps={"train": 11}, rounds={"train": 3}, sites=1, threads=1)
    for time, step, number in ((0.0, 1, 0), (20.0, 11, 0), (25.0, 1, 1)):
        estimate.add(event(time, step, round=number))
    assert (estimate.done, estimate.total) == (12, 33)
    assert estimate.left() == 20.0 + 22.0 + 2.5


def test_sites_that_run_at_once_share_the_time() -> None:
    estimate = Estimate(steps={"train": 11}, rounds={"train": 1}, sites=2, threads=2)
    for site in ("a", "b"):
        estimate.add(event(0.0, 1, site=site))
        estimate.add(event(10.0, 6, site=site))
    assert estimate.left() == 10.0


def test_a_stage_that_has_not_begun_is_judged_by_the_others_pace() -> None:
    estimate = Estimate(steps={"train": 11, "test": 5}, rounds={"train": 1, "test": 1}, sites=1, threads=1)
    estimate.add(event(0.0, 1))
    estimate.add(event(10.0, 11))
    assert estimate.left() == 5.0


def test_a_finished_run_has_nothing_left() -> None:
    estimate = Estimate(steps={"train": 2}, rounds={"train": 1}, sites=1, threads=1)
    estimate.add(event(0.0, 1))
    estimate.add(event(1.0, 2))
    assert estimate.left() == 0.0
    assert estimate.done == estimate.total == 2
