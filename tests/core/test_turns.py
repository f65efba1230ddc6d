"""Who is asked where not all are: a share rounded up, everybody as often as the others, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from fedmedseg.core.turns import asked, taking_part

SITES = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("participation", "sites", "count"), [(1.0, 4, 4), (0.5, 4, 2), (0.5, 5, 3), (0.1, 4, 1), (0.55, 100, 55)]
)
def test_a_share_is_rounded_up(participation: float, sites: int, count: int) -> None:
    assert asked(participation, sites) == count


@pytest.mark.parametrize("participation", [0.2, 0.4, 0.5, 0.8])
def test_everybody_is_asked_as_often_as_the_others(participation: float) -> None:
    rounds = [taking_part(SITES, participation, seed=3, stage="training", number=number) for number in range(10)]
    count = asked(participation, 5)
    assert all(len(set(one)) == len(one) == count and one == sorted(one) for one in rounds)
    turns = Counter(site for one in rounds for site in one)
    assert max(turns.values()) - min(turns[site] for site in SITES) <= 1
    # all of them in as few rounds as can be
    assert {site for one in rounds[: -(-5 // count)] for site in one} == set(SITES)


def test_all_take_part_unless_a_share_is_asked_for() -> None:
    assert taking_part(SITES, 1.0, seed=1, stage="training", number=7) == SITES


def test_the_order_depends_on_seed_and_stage_alone() -> None:
    def order(seed: int, stage: str) -> list[list[str]]:
        return [taking_part(SITES, 0.4, seed=seed, stage=stage, number=number) for number in range(6)]

    assert order(1, "training") == order(1, "training")
    assert order(1, "training") != order(2, "training")
    assert order(1, "training") != order(1, "pretraining")
