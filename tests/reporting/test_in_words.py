"""What figures say, in words: every figure whose numbers stand in no table tells them to whoever does not see it."""

from __future__ import annotations

import re

import records

from fedmedseg.reporting.in_words import in_words
from fedmedseg.reporting.report import render

TOLD = ("curves", "teacher", "features", "weights", "attention")


def test_lines_are_told_by_their_ends_and_weights_by_their_range() -> None:
    metrics = [{"feature_std": value, "teacher_std": 1.0} for value in (0.9, 0.4, 0.6)]
    rounds = [
        records.one_round("training", number, 3, {"a": records.answer(metrics=one, weight=0.25 * (number + 1))})
        for number, one in enumerate(metrics)
    ]
    rounds[1]["notes"]["attention"] = {"encoder": {"a": 0.125}, "decoder": {"a": 0.5}}
    said = in_words({"sites": ["a"], "rounds": rounds})
    assert said == {
        "curves": "", "teacher": "a from 1 to 1", "features": "a from 0.9 to 0.6", "weights": "a 0.25 to 0.75",
        "attention": "a 0.125 to 0.5",
    }  # fmt: skip
    assert in_words({"rounds": []}) == dict.fromkeys(TOLD, "")


def test_what_a_page_says_in_place_of_its_pictures_holds_their_numbers() -> None:
    record = records.finished()
    for one in record["rounds"][:2]:
        for answer in one["sites"].values():
            answer["metrics"]["feature_std"] = 0.5
    page = render(record, dict.fromkeys(TOLD, "<svg/>"))
    alternatives = re.findall(r'<img src="[^"]*" alt="([^"]*)"', page)
    assert len(alternatives) == len(TOLD)
    assert all(re.search(r"site-3 (from )?\d", one) for one in alternatives), alternatives
