"""A site's memory of its rounds: a round that is asked again begins as it did, and no future leaks into it."""

from __future__ import annotations

from pathlib import Path

from fedmedseg.core.recall import recall, remember
from fedmedseg.core.state import SiteState


def state(tmp_path: Path) -> SiteState:
    return SiteState(tmp_path, study="s", experiment="e" * 64, site="site-1", run="run")


def test_a_round_begins_from_what_the_last_one_before_it_left(tmp_path: Path) -> None:
    kept = state(tmp_path)
    assert recall(kept, "personal", 0) is None
    for number in range(3):
        remember(kept, "personal", number, {"value": number})
    assert [recall(kept, "personal", before) for before in (3, 2, 1)] == [{"value": 2}, {"value": 1}, None]


def test_a_round_that_is_done_again_replaces_its_memory_and_what_came_later(tmp_path: Path) -> None:
    kept = state(tmp_path)
    for number in range(3):
        remember(kept, "personal", number, {"value": number})
    remember(kept, "personal", 2, {"value": 20})
    assert recall(kept, "personal", 2) == {"value": 1}
    assert recall(kept, "personal", 9) == {"value": 20}
    remember(kept, "personal", 1, {"value": 10})
    assert recall(kept, "personal", 9) == {"value": 10}


def test_a_site_that_missed_rounds_goes_on_from_its_last(tmp_path: Path) -> None:
    kept = state(tmp_path)
    remember(kept, "personal", 1, {"value": 1})
    assert recall(kept, "personal", 7) == {"value": 1}
