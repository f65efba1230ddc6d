"""Processes of a comparison: one per piece, failures told, nothing begun too late, nothing left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fedmedseg.comparison.workers import Event, work_on
from fedmedseg.core.errors import ConfigurationError


def note(piece: tuple[Path, str]) -> None:
    """What a piece does: write its process, or go wrong as its name says."""
    folder, name = piece
    if name == "refused":
        raise ConfigurationError("crop", got=3, expected="4")
    if name == "broken":
        raise ZeroDivisionError
    if name == "killed":
        os.kill(os.getpid(), 9)
    (folder / name).write_text(str(os.getpid()))
    if name == "long":
        try:
            time.sleep(600)
        finally:
            (folder / "tidied").touch()


def outcome(events: list[Event]) -> dict[str, tuple[str, str]]:
    return {one.piece[1]: (one.kind, one.problem) for one in events if one.kind in ("done", "failed")}


def test_every_piece_has_a_process_of_its_own_and_a_failure_costs_itself_alone(tmp_path: Path) -> None:
    names = ["refused", "first", "broken", "killed", "second"]
    events = list(work_on(note, [(tmp_path, name) for name in names], workers=2, minutes=5))
    found = outcome(events)
    assert {name: kind for name, (kind, _) in found.items()} == {
        "refused": "failed", "first": "done", "broken": "failed", "killed": "failed", "second": "done",
    }  # fmt: skip
    assert found["refused"][1] == "crop: got 3. Expected 4."
    assert "ZeroDivisionError" in found["broken"][1]
    assert "status -9" in found["killed"][1]
    processes = {(tmp_path / name).read_text() for name in ("first", "second")}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert [one.piece[1] for one in events if one.kind == "begun"] == names


def test_nothing_is_begun_after_the_minutes(tmp_path: Path) -> None:
    assert list(work_on(note, [(tmp_path, "late")], workers=1, minutes=0.0)) == []
    assert list(tmp_path.iterdir()) == []


def test_who_stops_listening_ends_what_runs(tmp_path: Path) -> None:
    events = work_on(note, [(tmp_path, "long"), (tmp_path, "never")], workers=1, minutes=5)
    for _ in events:
        if (tmp_path / "long").is_file() and (tmp_path / "long").read_text():
            break
    process = int((tmp_path / "long").read_text())
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert (tmp_path / "tidied").exists(), "what a piece removes at its end it removes here too"
    assert not (tmp_path / "never").exists()
