"""What rounds and sites cost: bytes of all sites together, seconds of the slowest."""

from __future__ import annotations

import pytest
import records

from fedmedseg.reporting.costs import by_site, costs_of


def test_a_round_takes_as_long_as_its_slowest_site_and_moves_the_bytes_of_all() -> None:
    sites = {
        "a": records.answer(train_seconds=4.0, move_seconds=1.0, bytes_down=10, bytes_up=1),
        "b": records.answer(train_seconds=1.0, move_seconds=6.0, bytes_down=20, bytes_up=2, accepted=False),
    }
    (cost,) = costs_of({"rounds": [records.one_round("training", 2, 5, sites)]})
    assert (cost.stage, cost.number, cost.accepted, cost.asked) == ("training", 3, 1, 2)
    assert (cost.down, cost.up) == (30.0, 3.0)
    assert (cost.training, cost.moving, cost.aggregating, cost.whole) == (1.0, 6.0, 0.25, 6.0)


@pytest.mark.parametrize(
    ("examples", "accepted", "told"), [(3, True, "3"), (None, True, "withheld"), (None, False, "-")]
)
def test_a_number_that_did_not_come_was_withheld_by_a_site_that_was_heard(
    examples: int | None, accepted: bool, told: str
) -> None:
    answer = records.answer(examples=examples, accepted=accepted)
    (line,) = by_site({"rounds": [records.one_round("training", 0, 1, {"a": answer})]})
    assert line["examples"] == told
