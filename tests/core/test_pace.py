"""The wait between two requests for work: short in short rounds, a small share of long ones, kept in the simulator."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.private.fed.server.server_runner import ServerRunner

from fedmedseg.core.pace import LONGEST, SHORTEST, hold_requests, request_interval


@pytest.mark.parametrize(("elapsed", "seconds"), [(0.0, 0.02), (1.0, 0.02), (10.0, 0.2), (50.0, 1.0), (3600.0, 2.0)])
def test_the_wait_grows_with_the_round_and_has_its_bounds(elapsed: float, seconds: float) -> None:
    assert request_interval(elapsed) == pytest.approx(seconds)
    assert SHORTEST <= request_interval(elapsed) <= LONGEST


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ServerRunner:
    """FLARE's own, whose stage has work when it is asked for the third time; time passes only where it sleeps."""
    made = ServerRunner(config=MagicMock(), job_id="job", engine=MagicMock())
    work = iter([("", "", None), ("", "", None)])
    made.current_wf = MagicMock()
    made.current_wf.controller.communicator.process_task_request.side_effect = lambda *_: next(
        work, ("training", "t1", Shareable())
    )
    made.fire_event = MagicMock()
    clock = MagicMock()
    clock.now, clock.slept = 0.0, []
    clock.monotonic.side_effect = lambda: clock.now

    def sleep(seconds: float) -> None:
        clock.now += seconds
        clock.slept.append(seconds)

    clock.sleep.side_effect = sleep
    monkeypatch.setattr("fedmedseg.core.pace.time", clock)
    made.clock = clock
    return made


def ask(runner: Any) -> str:
    return str(runner._try_to_get_task(MagicMock(), FLContext())[0])


def test_a_kept_question_is_answered_as_soon_as_there_is_work(runner: Any) -> None:
    assert ask(runner) == "", "as FLARE does it: no"
    hold_requests(runner, sites=2)
    assert ask(runner) == "training"
    assert runner.clock.slept == [0.01]


def test_a_question_between_two_stages_is_kept_too_and_none_at_the_end(runner: Any) -> None:
    stage, runner.current_wf = runner.current_wf, None
    hold_requests(runner, sites=2)
    slept = runner.clock.sleep.side_effect

    def next_stage(seconds: float) -> None:
        slept(seconds)
        runner.current_wf = stage

    runner.clock.sleep.side_effect = next_stage
    assert ask(runner) == "training"
    runner.status, runner.current_wf, runner.clock.slept = "done", None, []
    assert ask(runner) == ""
    assert runner.clock.slept == []


@pytest.mark.parametrize(("sites", "interval"), [(0, 0.005), (2, 0.01), (40, 0.2)])
def test_looks_are_shared_by_all_sites_and_end(runner: Any, sites: int, interval: float) -> None:
    runner.current_wf.controller.communicator.process_task_request.side_effect = lambda *_: ("", "", None)
    for _ in range(3):
        hold_requests(runner, sites=sites)  # for every question anew
    assert ask(runner) == ""
    assert runner.clock.slept == pytest.approx([interval] * len(runner.clock.slept))
    assert 0.5 < runner.clock.now <= 0.5 + 2 * interval
