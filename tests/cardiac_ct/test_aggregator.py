"""A head is the mean over the sites that trained it; the trunk is everybody's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.cardiac_ct.aggregator import TrainedHeadsAggregator, mean_by_head, trained_heads
from fedmedseg.cardiac_ct.plan import stages
from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.config import Experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.jobs import find_job, read_settings, write_job
from fedmedseg.core.question import Round
from fedmedseg.core.robust import RobustSection, norms_of
from fedmedseg.core.sealing import Sealing, layouts, seal, split, unseal
from fedmedseg.core.wire import Part, Schema, StageContract

Study = Callable[..., Experiment]
Rule = Callable[[str], TrainedHeadsAggregator]
TRUNK, HPS, MS, CALC = "student.trunk.a", "student.heads.hps.w", "student.heads.ms.w", "student.heads.calc.w"


@pytest.fixture
def rule(tmp_path: Path) -> Rule:
    """rule("all"): the rule of the shipped job with that ``head_mean``."""

    def make(head_mean: str) -> TrainedHeadsAggregator:
        settings, _ = read_settings(find_job("cardiac_ct"), [{"cardiac_ct": {"head_mean": head_mean}}])
        job = write_job(find_job("cardiac_ct"), settings, tmp_path / head_mean)
        return TrainedHeadsAggregator(experiment_file=str(job / "app" / "config" / "experiment.yaml"))

    return make


def site(trunk: float, *, hps: float = 0.0, ms: float = 0.0, calc: float = 0.0) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([value]) for name, value in ((TRUNK, trunk), (HPS, hps), (MS, ms), (CALC, calc))}


def sent(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of it leaves a site: no head that did not move."""
    return {name: tensor for name, tensor in tensors.items() if name == TRUNK or bool(tensor.any())}


@pytest.mark.parametrize("leaves", [dict, sent], ids=["zeros", "left out"])
def test_an_untouched_head_dilutes_nobodys(leaves: Callable[[Any], dict[str, torch.Tensor]]) -> None:
    replies = {"a": site(1.0, hps=3.0, ms=2.0), "b": site(2.0, hps=5.0), "c": site(3.0, hps=7.0)}
    came = {name: leaves(tensors) for name, tensors in replies.items()}
    mean, owners = mean_by_head(site(0.0), came, {"a": 0.5, "b": 0.25, "c": 0.25})
    assert list(came["b"]) == ([TRUNK, HPS] if leaves is sent else [TRUNK, HPS, MS, CALC])
    assert mean.keys() == site(0.0).keys()
    assert mean[TRUNK].item() == 0.5 + 0.5 + 0.75
    assert mean[HPS].item() == 1.5 + 1.25 + 1.75
    assert mean[MS].item() == 2.0
    assert mean[CALC].item() == 0.0
    assert owners == {"hps": ["a", "b", "c"], "ms": ["a"], "calc": []}


def test_two_of_three_share_a_head_by_their_own_weights() -> None:
    replies = {"a": site(0.0, ms=4.0), "b": site(0.0), "c": site(0.0, ms=1.0)}
    mean, _ = mean_by_head(site(0.0), replies, {"a": 0.2, "b": 0.4, "c": 0.4})
    torch.testing.assert_close(mean[MS], torch.tensor([4.0 / 3 + 2.0 / 3]))


def test_where_everybody_trained_everything_it_is_fedavg_to_the_bit() -> None:
    replies = {"a": site(1.0, hps=0.1, ms=0.2, calc=0.3), "b": site(0.7, hps=0.5, ms=0.6, calc=0.9)}
    weights = {"a": 0.3, "b": 0.7}
    mean, _ = mean_by_head(site(0.0), replies, weights)
    assert all(torch.equal(mean[name], tensor) for name, tensor in weighted_mean(replies, weights).items())


def test_permuting_who_owns_what_permutes_the_result_and_nothing_else() -> None:
    """Invariant 10."""
    one, other = site(1.0, hps=3.0), site(1.0, ms=3.0)
    weights = {"a": 0.5, "b": 0.5}
    first, second = (
        mean_by_head(site(0.0), {"a": one, "b": other}, weights)[0],
        mean_by_head(site(0.0), {"a": other, "b": one}, weights)[0],
    )
    assert {name: tensor.item() for name, tensor in first.items()} == {
        name: tensor.item() for name, tensor in second.items()
    }


class Opened:
    """Rounds of the shipped job's rule that the server opens, and what comes of them."""

    def __init__(self, aggregator: TrainedHeadsAggregator, names: Iterable[str]) -> None:
        self.aggregator, self.names = aggregator, list(names)

    def __call__(self, replies: Mapping[str, dict[str, torch.Tensor]], **robust: Any) -> dict[str, float]:
        shared = {name: torch.zeros(1) for name in self.names}
        contract = StageContract(
            sends="shared",
            returns="shared",
            separable=tuple(f"student.heads.{task}." for task in ("hps", "ms", "calc")),
        )
        current = Round.begin(
            run="a1", stage="distillation", number=0, nonce="b2", contract=contract, schema=Schema(shared),
            shared=shared, personal={}, robust=RobustSection.model_validate(robust),
        )  # fmt: skip
        self.aggregator.open_round(current)
        for name, tensors in replies.items():
            self.aggregator.contributions[name] = Contribution(
                name, sent(tensors), 3, 1, 0.0, {}, norms=norms_of(sent(tensors))
            )
        found = from_shareable(self.aggregator.aggregate(FLContext())).data
        return {name: tensor.item() for name, tensor in found.items()}


@pytest.fixture
def opened(rule: Rule) -> Opened:
    return Opened(rule("trained"), site(0.0))


def test_a_head_moved_out_of_all_bounds_is_named_and_clipped_where_the_trunk_stands_still(opened: Opened) -> None:
    replies = {"a": site(3.0, hps=4.0), "b": site(3.0, hps=4.0), "c": site(0.0, hps=1e6)}
    assert opened(replies)[HPS] == pytest.approx(1e6 / 3, rel=1e-4)
    assert "its update is long: 2e+05 times the median" in opened.aggregator.notes["outliers"]["c"]
    # lengths 5, 5 and a million
    assert opened(replies, clip="median")[HPS] == pytest.approx((4.0 + 4.0 + 5.0) / 3)


@pytest.mark.parametrize("robust", ["median", "trimmed_mean"])
def test_one_site_cannot_end_a_robust_study_by_what_it_leaves_out_or_moves(opened: Opened, robust: str) -> None:
    honest = {"a": site(1.0, hps=2.0), "b": site(2.0, hps=3.0)}
    left_out = opened(honest | {"c": site(3.0)}, rule=robust)
    assert left_out == {TRUNK: 2.0, HPS: 0.0, MS: 0.0, CALC: 0.0}
    assert opened.aggregator.notes["heads_left"] == ["hps"]
    moved = opened(honest | {"c": site(3.0, hps=4.0, calc=9.0)}, rule=robust)
    assert moved == {TRUNK: 2.0, HPS: 3.0, MS: 0.0, CALC: 0.0}
    assert opened.aggregator.notes["heads_left"] == ["calc"]


def test_a_difference_of_another_part_of_the_network_is_no_head() -> None:
    assert trained_heads(site(5.0, calc=1.0)) == {"calc"}
    assert trained_heads({"teacher.hps.w": torch.ones(1)}) == frozenset()


def test_a_rule_that_looks_at_heads_cannot_be_encrypted_and_the_mean_over_all_is_fedavg(
    rule: Rule,
) -> None:
    replies = {"a": site(1.0, hps=4.0), "b": site(2.0, ms=8.0)}
    weights = {"a": 0.75, "b": 0.25}
    came = {name: Contribution(name, tensors, 3, 1, 0.0, {}) for name, tensors in replies.items()}
    by_head, over_all = rule("trained"), rule("all")
    assert "head_mean trained reads the sites' differences" in by_head.needs_plain
    assert over_all.needs_plain == ""
    assert by_head.combine(site(0.0), came, weights)[HPS].item() == 4.0
    found = over_all.combine(site(0.0), came, weights)
    assert {name: tensor.item() for name, tensor in found.items()} == {TRUNK: 1.25, HPS: 3.0, MS: 2.0, CALC: 0.0}
    # who trained what is recorded all the same
    assert over_all.notes["heads"] == by_head.notes["heads"] == {"hps": ["a"], "ms": ["b"], "calc": []}


def test_encrypted_rounds_of_distillation_and_head_tuning_open_to_the_sums_of_the_plain_ones(study: Study) -> None:
    """Heads lie in the entries of both stages; the sites add both up."""
    pytest.importorskip("tenseal", reason="the extra he is not installed")
    from fedmedseg.core.ckks import GRID, SHARES, Cipher, make_contexts

    server, own = map(Cipher, make_contexts())
    contracts = stages(study(federation={"encryption": "ckks"}, cardiac_ct={"head_mean": "all"}))
    shared = {**site(1.0, hps=2.0, ms=3.0, calc=4.0), "teacher.hps.w": torch.tensor([5.0])}
    schema, kept = Schema(shared), dict(shared)
    expected = dict(shared)
    rounds = {
        "distillation": {"a": site(1.0, hps=0.5), "b": site(3.0, hps=0.25, ms=1.0)},
        "head_tuning": {"a": site(9.0, ms=0.5), "b": site(9.0, calc=0.125)},
    }
    for stage, replies in rounds.items():
        back = {name: contracts[stage].returned_in(0).of(tensors) for name, tensors in replies.items()}
        sealing = Sealing.begin(
            server, stage=stage, part=contracts[stage].sent_in(0), schema=schema, contracts=contracts, whole=kept
        )
        sealed = {name: {sealing.name: seal(own, tensors)} for name, tensors in back.items()}
        kept = sealing.added(sealed, {"a": SHARES // 4, "b": SHARES - SHARES // 4})
        for name, difference in weighted_mean(back, {"a": 0.25, "b": 0.75}).items():
            expected[name] = expected[name] + difference
    plain, entries = split(kept)
    opened = unseal(own, plain, entries, layouts(schema, contracts, Part()))
    for name, tensor in expected.items():
        torch.testing.assert_close(opened[name], tensor, atol=2 * GRID + 1e-3, rtol=0)
    assert opened["teacher.hps.w"].item() == 5.0
