"""Progress: few lines for people, whole records for programs, and no failure of its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fedmedseg.core import progress
from fedmedseg.core.progress import Follower, Progress, clock


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


@pytest.fixture
def clock_in_hand(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def of(file: Path | None = None) -> Progress:
    return Progress(site="site-1", stage="pretraining", round=1, rounds=5, file=file)


def test_a_line_at_most_every_five_seconds_and_one_at_the_end(
    clock_in_hand: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shown = of()
    for step in range(1, 22):
        clock_in_hand.now += 1.0
        shown.update("pretraining", step, 21, 0.5)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "site-1 pretraining round 2/5 step 1/21 loss 0.5000",
        "site-1 pretraining round 2/5 step 6/21 loss 0.5000, 0:15 left",
        "site-1 pretraining round 2/5 step 11/21 loss 0.5000, 0:10 left",
        "site-1 pretraining round 2/5 step 16/21 loss 0.5000, 0:05 left",
        "site-1 pretraining round 2/5 step 21/21 loss 0.5000, 0:00 left",
    ]


def test_other_work_is_named_and_timed_on_its_own(clock_in_hand: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown = of()
    shown.update("pretraining", 1, 1)
    clock_in_hand.now += 100
    shown.update("fine-tuning from personal", 1, 4)
    clock_in_hand.now += 6
    shown.update("fine-tuning from personal", 2, 4, 0.25)
    assert caplog.messages[-1] == (
        "site-1 pretraining round 2/5 fine-tuning from personal step 2/4 loss 0.2500, 0:12 left"
    )


def test_records_are_whole_lines_at_most_two_a_second(clock_in_hand: Clock, tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    shown = of(file)
    for step in range(1, 11):
        shown.update("pretraining", step, 10, 0.5)
        clock_in_hand.now += 0.125
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 5, 9, 10]
    assert records[1] == {
        "time": pytest.approx(1.7e9 + 100.5),
        "site": "site-1",
        "stage": "pretraining",
        "round": 1,
        "rounds": 5,
        "work": "pretraining",
        "step": 5,
        "steps": 10,
        "loss": 0.5,
        "left": pytest.approx(0.625),
    }


def test_a_full_disk_ends_the_records_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault row 28. The file's folder is missing, which fails as a full disk does: by an OSError."""
    shown = of(tmp_path / "missing" / "progress.jsonl")
    shown.update("pretraining", 1, 1)
    shown.update("pretraining", 1, 1)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "missing" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.4, "0:09"), (59.5, "1:00"), (61, "1:01"), (3599.6, "1:00:00"), (36061, "10:01:01")],
)
def test_a_clock_rounds_to_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_progress_is_followed_line_by_line_at_every_site(tmp_path: Path) -> None:
    files = [tmp_path / site / "job-7" / "progress.jsonl" for site in ("site-1", "site-2")]
    for file in files:
        file.parent.mkdir(parents=True)
    follower = Follower(tmp_path, run="job-7")
    assert list(follower.events()) == []
    files[0].write_text('{"step": 1}\n{"step": 2}\n{"st')
    files[1].write_text('{"step": 7}\n')
    assert [event["step"] for event in follower.events()] == [1, 2, 7]
    with open(files[0], "a") as stream:
        stream.write('ep": 3}\n')
    assert [event["step"] for event in follower.events()] == [3]
    assert list(follower.events()) == []


def test_half_a_line_of_a_killed_site_is_passed_over(tmp_path: Path) -> None:
    """Fault row 19: the process that wrote it is gone, and the next one appends."""
    file = tmp_path / "site-1" / "job-7" / "progress.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    assert [event["step"] for event in Follower(tmp_path, run="job-7").events()] == [1, 3]
