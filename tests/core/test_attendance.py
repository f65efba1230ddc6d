"""Who is asked, who is asked again, and whose word stands."""

from __future__ import annotations

import pytest

from fedmedseg.core.attendance import Attendance
from fedmedseg.core.rounds import LOST

SITES = ["a", "b", "c", "d"]


@pytest.fixture
def sites() -> Attendance:
    """``a`` declined, ``b`` is unfit, ``c`` is gone, ``d`` is well."""
    found = Attendance()
    found.declined["a"], found.unfit["b"] = "NO_CASES: training", "VERSIONS: torch"
    found.lose("c")
    found.open_round()
    return found


def test_those_that_cannot_answer_are_needed_and_not_asked(sites: Attendance) -> None:
    counted = sites.counted(SITES)
    assert counted == ["b", "c", "d"]
    assert sites.asked(counted) == ["d"]
    assert sites.replies == {
        "b": {"reason": "VERSIONS: torch", "seconds": None},
        "c": {"reason": LOST, "seconds": None},
    }
    assert sites.answered() == set()


def test_a_site_that_is_back_is_asked_in_the_next_round(sites: Attendance) -> None:
    sites.back("c")
    sites.open_round()
    assert sites.asked(sites.counted(SITES)) == ["c", "d"]
    assert "c" not in sites.replies


def test_a_loss_does_not_undo_a_reply(sites: Attendance) -> None:
    sites.note("d", None, 2.0, keep=False)
    sites.lose("d")
    assert sites.replies["d"] == {"reason": None, "seconds": 2.0}
    assert sites.answered() == set(), "it is not there to be waited for"


def test_only_those_without_a_counted_reply_are_asked_again(sites: Attendance) -> None:
    sites.note("d", "NOT_FINITE: x", 1.0, keep=False)
    assert sites.failed(SITES, accepted=[]) == ["d"]
    assert sites.failed(SITES, accepted=["d"]) == []
    assert sites.answered() == {"d"}


def test_what_counted_before_stands(sites: Attendance) -> None:
    sites.note("d", None, 1.0, keep=False)
    sites.note("d", "ALREADY_RECEIVED", 9.0, keep=True)
    assert sites.replies["d"] == {"reason": None, "seconds": 1.0}


def test_a_message_refused_unread_is_told_once_and_yields_to_a_reply(sites: Attendance) -> None:
    assert sites.unread("d", SITES, "OVERSIZE") == "d"
    assert sites.unread("d", SITES, "OVERSIZE") is None
    assert [sites.unread(name, SITES, "OVERSIZE") for name in ("x", "y")] == ["somebody", None]
    assert sites.replies["d"]["reason"] == "OVERSIZE"
    assert "somebody" not in sites.replies
    sites.note("d", None, 1.0, keep=False)
    assert sites.replies["d"]["reason"] is None
    sites.open_round()
    assert sites.unread("d", SITES, "OVERSIZE") == "d"


def test_who_looks_on_cannot_change_what_was_said(sites: Attendance) -> None:
    sites.replies["b"]["reason"] = None  # type: ignore[index]
    assert sites.replies["b"]["reason"] == "VERSIONS: torch"


def test_a_declined_site_stands_in_the_record_of_a_round_that_asks_nobody(sites: Attendance) -> None:
    sites.note_declined()
    assert sites.replies["a"]["reason"] == "NO_CASES: training"
