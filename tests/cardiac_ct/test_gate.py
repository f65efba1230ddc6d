"""What a teacher's answer must be like to be learned from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedmedseg.cardiac_ct.gate import Answer, Limits, passed, problem

HPS = np.array([[0.0, 0, 0], [20, 0, 0], [10, 17, 0], [0, 0, 12], [20, 0, 12]])
LIMITS = Limits(hinge_points=(8, 50), ostia=(2, 50), septum=(1, 25), calcium=(0, 1000), least_confidence=0.3)


def points(rows: np.ndarray, *, confidence: float = 1.0) -> Answer:
    return Answer(points=rows, volume=0.0, confidence=confidence)


def test_plausible_answers_pass() -> None:
    assert problem("hps", points(HPS), LIMITS) is None
    assert problem("ms", points(np.array([[0.0, 0, 0], [0, 0, 7]])), LIMITS) is None
    assert problem("calc", Answer(points=None, volume=500.0, confidence=0.9), LIMITS) is None


def moved(row: int, to: tuple[float, float, float]) -> np.ndarray:
    changed = HPS.copy()
    changed[row] = to
    return changed


@pytest.mark.parametrize(
    ("task", "answer", "words"),
    [
        ("hps", points(moved(4, (math.nan,) * 3)), "points missing"),
        ("hps", points(HPS, confidence=0.2), "low confidence"),
        ("hps", points(moved(1, (3, 0, 0))), "implausible hinge points"),
        ("hps", points(moved(1, (99, 0, 0))), "implausible hinge points"),
        ("hps", points(moved(3, (0, 0, 80))), "implausible ostia"),
        ("hps", points(moved(3, (0, 0, 1))), "implausible ostia"),
        ("ms", points(np.array([[0.0, 0, 0], [0, 0, 40]])), "implausible septum"),
        ("calc", Answer(points=None, volume=1500.0, confidence=0.9), "implausible calcification"),
    ],
)
def test_each_limit_refuses_what_it_is_for_and_null_leaves_it_out(task: str, answer: Answer, words: str) -> None:
    assert problem(task, answer, LIMITS) == words
    if words != "points missing":
        assert problem(task, answer, Limits()) is None


def test_a_scan_counts_where_all_points_were_found_as_published() -> None:
    answers = {
        "hps": points(HPS),
        "ms": points(np.full((2, 3), math.nan)),
        "calc": Answer(points=None, volume=5.0, confidence=0.9),
    }
    kept, reasons = passed(answers, LIMITS, keep="scan")
    assert kept == ()
    assert reasons == {
        "hps": "another task's points failed",
        "ms": "points missing",
        "calc": "another task's points failed",
    }
    assert passed(answers, LIMITS, keep="task") == (("hps", "calc"), {"ms": "points missing"})


def test_a_mask_that_fails_does_not_cost_the_points() -> None:
    answers = {"hps": points(HPS), "calc": Answer(points=None, volume=5.0, confidence=0.1)}
    assert passed(answers, LIMITS, keep="scan") == (("hps",), {"calc": "low confidence"})
    assert passed(answers, replace(LIMITS, least_confidence=0.0), keep="scan")[0] == ("hps", "calc")
