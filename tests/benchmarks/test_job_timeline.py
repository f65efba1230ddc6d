"""The timeline of a job: a log cut at its marks, and medians of the parts."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import job_timeline
import pytest
from job_timeline import LAST, MARKS, parts_of, summary, table
from stand_in_runs import Run

SAID = (
    (2.0, "ServerRunner - INFO - Server runner starting ..."),
    (3.5, "Workflow - INFO - Round 0 started."),
    (6.0, "Workflow - INFO - Round 0 finished.\nwith a line more"),
    (6.5, "Workflow - INFO - Round 1 finished."),
    # the next stage counts from 0 again
    (6.6, "Workflow - INFO - Round 0 started."),
    (7.0, "Workflow - INFO - Round 0 finished."),
    (7.1, "ServerRunner - INFO - ABOUT_TO_END_RUN fired"),
    (9.0, "ServerRunner - INFO - END_RUN fired"),
    (12.0, "MPM - INFO - MPM: Good Bye!"),
)
BEGAN = datetime(2026, 3, 1, 12).timestamp()
PARTS = (2.0, 1.5, 2.5, 1.0, 2.0, 3.0, 1.0)


def run_of(said: tuple[tuple[float, str], ...] = SAID, seconds: float = 13.0) -> Run:
    """A run whose server wrote these lines so many seconds after it was asked for."""
    stamp = [datetime.fromtimestamp(BEGAN + after).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3] for after, _ in said]
    log = "\n".join(f"{at} - {text}" for at, (_, text) in zip(stamp, said, strict=True))
    return Run([0.5], seconds, 1.4, 300.0, BEGAN, log)


def test_a_log_is_cut_at_its_marks_and_nothing_is_left_out() -> None:
    parts = parts_of(run_of())
    assert list(parts) == [*(name for name, _ in MARKS), LAST]
    assert list(parts.values()) == pytest.approx(PARTS, abs=2e-3)
    assert sum(parts.values()) == pytest.approx(13.0)


@pytest.mark.parametrize("left_out", [0, 1, 7, 8])
def test_a_log_without_a_mark_is_refused(left_out: int) -> None:
    """ABOUT_TO_END_RUN is no END_RUN."""
    said = tuple(line for number, line in enumerate(SAID) if number != left_out and (left_out != 1 or number != 4))
    with pytest.raises(SystemExit, match="no line with"):
        parts_of(run_of(said))


def test_medians_are_told_by_part_and_way() -> None:
    found = summary([run_of(), run_of(seconds=13.5), run_of(seconds=20.0)])
    assert (found["job_s"], found["runs"]) == (13.5, 3)
    assert found["parts_s"][LAST] == 1.5
    said = table({"simulator": found, "deployed": found, "void": True})
    assert "deployed  void" in said
    assert said.splitlines()[-1].split()[-1] == "13.50"


def test_ways_take_turns_and_what_was_run_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        job_timeline, "in_simulator", lambda **how: asked.append(("simulator", how)) or run_of(seconds=14.0)
    )
    monkeypatch.setattr(job_timeline, "deployed", lambda **how: asked.append(("deployed", how)) or [run_of()])
    out = tmp_path / "out.json"
    job_timeline.main(["--repeats", "2", "--sites", "3", "--rounds", "4", "--out", str(out)])
    assert [way for way, _ in asked] == ["simulator", "deployed"] * 2
    assert asked[0][1] == {"threads": 3, "sites": 3, "rounds": 4, "width": 12}
    content = json.loads(out.read_text())
    assert (content["simulator"]["job_s"], content["deployed"]["job_s"]) == (14.0, 13.0)
    assert content["command"] == "python benchmarks/job_timeline.py --repeats 2 --sites 3 --rounds 4"
    assert "the whole job" in capsys.readouterr().out
