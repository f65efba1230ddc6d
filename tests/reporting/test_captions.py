"""Captions say what the weights of a study were."""

from __future__ import annotations

from typing import Any

import pytest
import records
from html_page import Page

from fedmedseg.reporting.captions import captions, weights_caption
from fedmedseg.reporting.report import render


def weighted(counts: list[int | None], weights: list[float], **changes: Any) -> dict[str, Any]:
    """A record of one round of training."""
    replies = {
        f"site-{place}": records.answer(examples=count, weight=weight)
        for place, (count, weight) in enumerate(zip(counts, weights, strict=True))
    }
    return {"rounds": [records.one_round("training", 0, 1, replies, **changes)]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (weighted([10, 30], [0.25, 0.75]), "by its number of examples."),
        (weighted([10, 10], [0.5, 0.5]), "by its number of examples."),
        (weighted([10, 30], [0.5, 0.5]), "the same for all."),
        (weighted([10, None], [0.5, 0.5]), "the same for all."),
        (
            weighted([1, 900], [0.1, 0.9], notes={"weighting": ["weight of site-1 capped from 900 to 9"]}),
            "by its number of examples, capped where a site has many more than the others.",
        ),
        (
            weighted([10, 30], [0.5, 0.5]) | {"settings": {"federation": {"robust": {"rule": "median"}}}},
            "before the rule median, which is no weighted mean: all alike.",
        ),
        ({}, "by its number of examples."),
    ],
)
def test_the_caption_of_weights_follows_from_the_record(record: dict[str, Any], words: str) -> None:
    assert weights_caption(record).endswith(words)


@pytest.mark.parametrize(
    ("note", "words", "field"),
    [
        ("attention", "Layer-wise weights", "A field for each layer and site"),
        (
            "pair_attention",
            "What each site (across) gives to each site's own model (down)",
            "A field for each two sites",
        ),
    ],
)
def test_the_caption_of_attention_says_of_what_it_is(note: str, words: str, field: str) -> None:
    record = records.finished()
    for one in record["rounds"]:
        if "attention" in one["notes"]:
            one["notes"] = {note: one["notes"].pop("attention")}
    made = captions(record)
    assert made["attention"].startswith(words)
    assert made["attention_alt"].startswith(field)
    page = render(record, {"attention": "<svg/>"})
    assert words in Page(page).text
    assert f'alt="{field}' in page
