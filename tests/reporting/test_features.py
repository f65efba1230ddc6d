"""What the report shows of a study whose sites exchange features."""

from __future__ import annotations

from typing import Any

import pytest
import records

from fedmedseg.reporting.figures import figures
from fedmedseg.reporting.report import context, render


@pytest.fixture
def record() -> dict[str, Any]:
    made = records.finished()
    for number, one in enumerate(made["rounds"][:6]):
        for answer in one["sites"].values():
            answer["features_down"] = {"rows": 10, "bytes": 2_000_000} if number else {"rows": 0, "bytes": 0}
            answer["features_up"] = {"rows": 5, "bytes": 1_000_000}
            answer["metrics"]["feature_std"] = 0.5
    made["rounds"][0]["notes"]["correspondence"] = ["parts may not correspond: <stacks>"]
    made["rounds"][1]["notes"]["correspondence"] = ["parts may not correspond: <stacks>"]
    return made


def test_traffic_says_how_much_of_it_is_features(record: dict[str, Any]) -> None:
    movement = context(record, {})["by_site"]
    # by hand: five rounds of 2,000,000 bytes down, six of 1,000,000 up
    assert movement[0]["down"].endswith(", of which features 9.5 MiB")
    assert movement[0]["up"].endswith(", of which features 5.7 MiB")
    for line in context(records.finished(), {})["by_site"]:
        assert "features" not in line["down"] + line["up"]


def test_parts_that_do_not_correspond_are_told_once_and_escaped(record: dict[str, Any]) -> None:
    page = render(record, {})
    assert page.count("parts may not correspond: &lt;stacks&gt;") == 1
    assert "Parts may not correspond" not in render(records.finished(), {})


def test_the_spread_of_features_is_drawn(record: dict[str, Any]) -> None:
    assert "features" in figures(record)
    assert "features" not in figures(records.finished())


def test_updates_unlike_the_others_are_named_with_their_round(record: dict[str, Any]) -> None:
    record["rounds"][1]["notes"]["outliers"] = {"site-2": "its update is long: <9> times the median"}
    page = render(record, {})
    assert "round 2, site-2: its update is long: &lt;9&gt; times the median" in page
    assert "Updates unlike the others" not in render(records.finished(), {})
