"""The share of data in a step, by hand and of one job."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import data_loading
import pytest
from data_loading import Clock, share, timed, wrapped


def test_the_first_epoch_is_left_out() -> None:
    """By hand: epochs of two steps; afterwards 0.1 of 2 s each."""
    clock = Clock(steps=[4.0, 4.0, 2.0, 2.0], batches=[3.0, 1.0, 0.1, 0.1], epoch=2.0, first=0.0)
    found = share(clock)
    assert (found["share"], found["first_epoch_share"], found["seconds_of_a_step"]) == (0.05, 0.5, 2.0)


def test_steps_that_make_no_second_epoch_are_refused() -> None:
    with pytest.raises(SystemExit, match="no second epoch"):
        share(Clock(steps=[1.0], batches=[0.5], epoch=3.0, first=0.0))


def test_a_clock_is_taken_out_again_even_after_an_error() -> None:
    real = json.dumps
    with suppress(ZeroDivisionError), wrapped("json", "dumps", lambda call, one: call(one) + "!"):
        assert json.dumps([1]) == "[1]!"
        raise ZeroDivisionError
    assert json.dumps is real


@pytest.mark.parametrize("name", sorted(data_loading.LOADERS))
def test_every_loader_names_what_is_there(name: str) -> None:
    with timed(data_loading.LOADERS[name]) as clock:
        assert clock.steps == []


@pytest.mark.slow
def test_a_job_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    data_loading.main(["--jobs", "fedavg", "--set", "segmentation.steps=24", "--out", str(out)])
    (found,) = json.loads(out.read_text())["jobs"].values()
    assert 0.0 < found["share"] < 1.0
    assert found["steps"] > found["steps_of_an_epoch"]
