"""A site's own TensorBoard events: one run per site, figures by stage and round, and no round lost for want of room."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core import own_events as module
from fedmedseg.core.own_events import OwnEvents

EventsIn = Callable[[Path], dict[str, Any]]


def test_fresh_processes_go_on_in_one_run_by_stage_and_round(tmp_path: Path, events_in: EventsIn) -> None:
    for step, loss in enumerate((1.0, 0.5)):
        events = OwnEvents(run=tmp_path, site="site-1")
        events.write({"loss": loss, "dice/personal/left ventricle": 0.25}, stage="training", step=step)
        events.close()
    events = OwnEvents(run=tmp_path, site="site-1")
    events.write({"cases": 3.0}, stage="evaluation", step=0)
    # read while the file is still open: it is watched while the study runs
    assert events_in(tmp_path / "tb_events") == {
        "site-1": {
            "training/loss": [(0, 1.0), (1, 0.5)],
            "training/dice/personal/left ventricle": [(0, 0.25), (1, 0.25)],
            "evaluation/cases": [(0, 3.0)],
        }
    }
    events.close()


def test_without_figures_no_file_is_made(tmp_path: Path) -> None:
    events = OwnEvents(run=tmp_path, site="site-1")
    events.write({}, stage="training", step=0)
    events.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_events_once_and_names_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(log_dir: str) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", log_dir)

    monkeypatch.setattr(module, "TensorBoardEventWriter", full)
    events = OwnEvents(run=tmp_path, site="site-1")
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            events.write({"loss": 0.5}, stage="training", step=step)
        events.close()
    assert [record.getMessage() for record in caplog.records] == [
        "this site's own TensorBoard events end here: disk full"
    ]
