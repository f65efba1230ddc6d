"""Refusals that come again: one line, then a count, in bounded memory and a bounded number of lines."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from fedmedseg.core.audit import Outcome, Trail, read
from fedmedseg.core.audit_refusals import MOST_TOLD, Refusals


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Refusals:
    # many lines, without the wait for the disk
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Refusals(Trail(tmp_path / "audit", participant="server"), again=600.0, clock=clock)


def told(refusals: Refusals) -> list[tuple[str, str]]:
    """Who, and why, of every line."""
    return [(entry["who"], entry["reason"]) for entry in read(refusals.trail.folder)]


def test_equal_refusals_are_one_line_and_then_their_number(refusals: Refusals, clock: Clock) -> None:
    for _ in range(5):
        refusals.note(action="register", who="site-9", reason="not proved")
    assert told(refusals) == [("site-9", "not proved")]
    clock.now = 599.0
    refusals.note(action="register", who="site-9", reason="not proved")
    assert len(told(refusals)) == 1
    clock.now = 600.0
    refusals.note(action="register", who="site-9", reason="not proved")
    assert told(refusals)[1:] == [("site-9", "5 more: not proved"), ("site-9", "not proved")]


@pytest.mark.parametrize(
    "other",
    [{"action": "login"}, {"who": "site-8"}, {"job": "7"}, {"reason": "disabled"}, {"outcome": Outcome.FAILED}],
    ids=lambda one: next(iter(one)),
)
def test_refusals_that_differ_in_anything_are_lines_of_their_own(refusals: Refusals, other: dict[str, str]) -> None:
    same = {"action": "register", "who": "site-9", "job": "", "reason": "not proved"}
    for one in (same, {**same, **other}, same, {**same, **other}):
        refusals.note(**one)  # type: ignore[arg-type]
    assert len(told(refusals)) == 2
    assert read(refusals.trail.folder)[1]["outcome"] == other.get("outcome", Outcome.REFUSED)


def test_a_thousand_names_are_a_few_lines_and_a_number(refusals: Refusals, clock: Clock) -> None:
    for number in range(1000):
        refusals.note(action="register", who=f"site-{number}", reason="x" * 9999)
    assert len(told(refusals)) == MOST_TOLD + 1
    assert told(refusals)[-1] == ("others", "further refusals, counted together")
    assert len(refusals._told) == MOST_TOLD + 1, "memory is bounded"
    assert max(len("".join(one)) for one in refusals._told) < 1000
    clock.now = 600.0
    refusals.tell()
    assert told(refusals)[-1] == ("others", f"{1000 - MOST_TOLD - 1} more: further refusals, counted together")
    assert refusals._told == {}


def test_what_was_refused_once_leaves_no_second_line(refusals: Refusals, clock: Clock) -> None:
    refusals.note(action="register", who="site-9")
    clock.now = 3600.0
    refusals.tell()
    assert len(told(refusals)) == 1


def test_the_number_is_written_although_nothing_is_refused_any_more(tmp_path: Path) -> None:
    refusals = Refusals(Trail(tmp_path / "audit", participant="server"), again=0.2)
    refusals.note(action="register", who="site-9", reason="not proved")
    refusals.note(action="register", who="site-9", reason="not proved")
    end = time.monotonic() + 30
    while len(told(refusals)) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert told(refusals)[1] == ("site-9", "1 more: not proved")


def test_many_threads_count_right(refusals: Refusals, clock: Clock) -> None:
    def ask() -> None:
        for _ in range(200):
            refusals.note(action="register", who="site-9", reason="not proved")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    clock.now = 600.0
    refusals.tell()
    assert told(refusals) == [("site-9", "not proved"), ("site-9", "1599 more: not proved")]
