"""A head is the mean over the sites that trained it; the trunk is everybody's."""

from __future__ import annotations

import torch

from fedmedseg.cardiac_ct.aggregator import TrainedHeadsAggregator, mean_by_head, trained_heads
from fedmedseg.core.aggregator import weighted_mean

TRUNK, HPS, MS, CALC = "student.trunk.a", "student.heads.hps.w", "student.heads.ms.w", "student.heads.calc.w"


def site(trunk: float, *, hps: float = 0.0, ms: float = 0.0, calc: float = 0.0) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([value]) for name, value in ((TRUNK, trunk), (HPS, hps), (MS, ms), (CALC, calc))}


def test_an_untouched_head_dilutes_nobodys() -> None:
    replies = {"a": site(1.0, hps=3.0, ms=2.0), "b": site(2.0, hps=5.0), "c": site(3.0, hps=7.0)}
    mean, owners = mean_by_head(replies, {"a": 0.5, "b": 0.25, "c": 0.25})
    assert mean[TRUNK].item() == 0.5 + 0.5 + 0.75
    assert mean[HPS].item() == 1.5 + 1.25 + 1.75
    assert mean[MS].item() == 2.0
    assert mean[CALC].item() == 0.0
    assert owners == {"hps": ["a", "b", "c"], "ms": ["a"], "calc": []}


def test_two_of_three_share_a_head_by_their_own_weights() -> None:
    replies = {"a": site(0.0, ms=4.0), "b": site(0.0), "c": site(0.0, ms=1.0)}
    mean, _ = mean_by_head(replies, {"a": 0.2, "b": 0.4, "c": 0.4})
    torch.testing.assert_close(mean[MS], torch.tensor([4.0 / 3 + 2.0 / 3]))


def test_where_everybody_trained_everything_it_is_fedavg_to_the_bit() -> None:
    replies = {"a": site(1.0, hps=0.1, ms=0.2, calc=0.3), "b": site(0.7, hps=0.5, ms=0.6, calc=0.9)}
    weights = {"a": 0.3, "b": 0.7}
    mean, _ = mean_by_head(replies, weights)
    assert all(torch.equal(mean[name], tensor) for name, tensor in weighted_mean(replies, weights).items())


def test_permuting_who_owns_what_permutes_the_result_and_nothing_else() -> None:
    """Invariant 10."""
    one, other = site(1.0, hps=3.0), site(1.0, ms=3.0)
    weights = {"a": 0.5, "b": 0.5}
    first, second = mean_by_head({"a": one, "b": other}, weights)[0], mean_by_head({"a": other, "b": one}, weights)[0]
    assert {name: tensor.item() for name, tensor in first.items()} == {
        name: tensor.item() for name, tensor in second.items()
    }


def test_a_difference_of_another_part_of_the_network_is_no_head() -> None:
    assert trained_heads(site(5.0, calc=1.0)) == {"calc"}
    assert trained_heads({"teacher.hps.w": torch.ones(1)}) == frozenset()


def test_a_rule_that_looks_at_heads_says_that_it_cannot_be_encrypted() -> None:
    assert "reads the sites' differences" in TrainedHeadsAggregator().needs_plain
