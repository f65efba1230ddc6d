"""Outliers are named, influence is bounded, and no rule is used where its condition on n and f does not hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.aggregator import GuardedAggregator, SharedKeysAggregator
from fedmedseg.core.config import Experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.federation_settings import RobustSection
from fedmedseg.core.jobs import check_quorum
from fedmedseg.core.question import Round
from fedmedseg.core.robust import clipped, combined, earlier_medians, nearest_site, running_median, survey
from fedmedseg.core.wire import Schema, StageContract

Tensors = dict[str, torch.Tensor]
SHARED = {"a": torch.zeros(400), "b": torch.zeros(20, 30)}
RETURNS = StageContract(sends="shared", returns="shared")


def updates(sites: int, *, seed: int = 0, spread: float = 0.5) -> dict[str, Tensors]:
    """Honest sites: one direction, and noise of their own."""
    draws = torch.Generator().manual_seed(seed)
    common = {name: torch.randn(tensor.shape, generator=draws) for name, tensor in SHARED.items()}
    return {
        f"site-{number}": {
            name: tensor + spread * torch.randn(tensor.shape, generator=draws) for name, tensor in common.items()
        }
        for number in range(1, sites + 1)
    }


def scaled(tensors: Mapping[str, torch.Tensor], by: float) -> Tensors:
    return {name: by * tensor for name, tensor in tensors.items()}


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])


def cosine(ones: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> float:
    return float(torch.nn.functional.cosine_similarity(flat(ones), flat(others), dim=0))


def aggregated(
    differences: Mapping[str, Tensors],
    *,
    examples: Mapping[str, int] | None = None,
    medians: tuple[float, ...] = (),
    **robust: Any,
) -> tuple[Tensors, GuardedAggregator]:
    """What the server makes of these, and the aggregator with its notes."""
    rule = SharedKeysAggregator()
    section = RobustSection.model_validate(robust)
    rule.open_round(
        Round.begin(
            run="run",
            stage="training",
            number=len(medians),
            nonce="nonce",
            contract=RETURNS,
            schema=Schema(SHARED),
            shared=SHARED,
            personal={},
            robust=section,
            medians=medians,
        )
    )
    rule.contributions = {
        site: Contribution(
            site=site, differences=one, examples=(examples or {}).get(site, 4), steps=1, train_seconds=0.0, metrics={}
        )
        for site, one in differences.items()
    }
    return dict(from_shareable(rule.aggregate(FLContext())).data), rule


def honest(differences: Mapping[str, Tensors]) -> Tensors:
    """The plain mean."""
    return aggregated(differences)[0]


def test_products_are_those_of_the_whole_updates_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmedseg.core import robust

    monkeypatch.setattr(robust, "BLOCK", 64)
    differences = updates(3)
    found = survey(differences, SHARED)
    rows = torch.stack([flat(differences[site]) for site in sorted(differences)]).double()
    assert torch.allclose(found.products, rows @ rows.T, rtol=1e-5)
    assert found.norms["site-2"] == pytest.approx(float(rows[1].norm()), rel=1e-6)
    assert found.agreement["site-1"] == pytest.approx(
        sum(cosine(differences["site-1"], differences[other]) for other in ("site-2", "site-3")) / 2, rel=1e-4
    )


def test_of_large_models_every_eighth_block_is_compared_and_every_one_in_eight_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lengths are exact all the same."""
    from fedmedseg.core import robust

    monkeypatch.setattr(robust, "BLOCK", 64)
    monkeypatch.setattr(robust, "SPARSE_FROM", 999)
    differences = updates(3)
    found = [survey(differences, SHARED, offset=number) for number in range(8)]
    whole = survey(differences, SHARED, exact=True)
    assert sum(one.products for one in found) == pytest.approx(whole.products, rel=1e-5)
    assert not any(torch.equal(one.products, whole.products) for one in found)
    for one in found:
        assert one.norms == pytest.approx(whole.norms, rel=1e-6)
        assert one.agreement["site-1"] == pytest.approx(whole.agreement["site-1"], abs=0.15)


LOUD = ("site-3", 1000.0, "its update is long: ")
FLIPPED = ("site-3", -1.0, "its update points away from most")


@pytest.mark.parametrize(("site", "by", "why"), [LOUD, FLIPPED], ids=["row 11: 1000 times", "row 12: sign flipped"])
def test_an_outlier_is_named_and_not_dropped_whatever_the_rule(
    caplog: pytest.LogCaptureFixture, site: str, by: float, why: str
) -> None:
    differences = updates(5)
    differences[site] = scaled(differences[site], by)
    with caplog.at_level(logging.WARNING):
        result, rule = aggregated(differences)
    assert rule.notes["outliers"].keys() == {site}
    assert rule.notes["outliers"][site].startswith(why)
    assert any(site in record.getMessage() and why in record.getMessage() for record in caplog.records)
    expected = sum(one["a"] for one in differences.values()) / 5
    assert torch.allclose(result["a"], expected, rtol=1e-4), "the mean is the mean: nothing was dropped unasked"


def test_honest_sites_are_not_named() -> None:
    for sites in (1, 2, 3, 5, 8):
        assert aggregated(updates(sites))[1].notes["outliers"] == {}


def test_of_two_sites_none_is_called_unlike_the_others_and_of_three_it_is() -> None:
    """The median of two lengths is one of them, so that a second site five times as long is no more odd than it."""
    for sites, named in ((2, set()), (3, {"site-2"})):
        differences = updates(sites)
        differences["site-2"] = scaled(differences["site-2"], 1000.0)
        notes = aggregated(differences)[1].notes
        assert notes["outliers"].keys() == named
        assert set(notes["updates"]["norms"]) == set(differences), "their lengths are in the record all the same"
        assert bool(notes["updates"]["agreement"]) is bool(named)


def test_a_site_that_did_not_move_does_not_divide_by_zero() -> None:
    differences = updates(4)
    differences["site-4"] = scaled(differences["site-4"], 0.0)
    notes = aggregated(differences)[1].notes
    assert notes["updates"]["norms"]["site-4"] == 0.0
    assert "site-4" not in notes["updates"]["agreement"]


@pytest.mark.parametrize(
    "robust",
    [
        {"clip": "median"},
        {"rule": "trimmed_mean"},
        {"rule": "median"},
        {"rule": "krum"},
        {"rule": "trimmed_mean", "clip": "median"},
    ],
    ids=str,
)
def test_row_11_a_thousandfold_update_hardly_turns_the_aggregate(robust: dict[str, Any]) -> None:
    differences = updates(5, spread=0.1)
    clean = honest({site: one for site, one in differences.items() if site != "site-2"})
    differences["site-2"] = scaled(differences["site-2"], 1000.0)
    result, _ = aggregated(differences, **robust)
    assert cosine(result, clean) >= 0.99
    assert float(flat(result).norm()) < 1.2 * float(flat(clean).norm())


def test_row_13_two_colluding_of_five_do_not_move_a_trimmed_mean() -> None:
    differences = updates(5, spread=0.1)
    clean = honest({site: one for site, one in differences.items() if site not in ("site-1", "site-4")})
    for site in ("site-1", "site-4"):
        differences[site] = scaled(clean, -50.0)
    for robust in ({"rule": "trimmed_mean", "faulty": 2}, {"rule": "median", "faulty": 2}):
        assert cosine(aggregated(differences, **robust)[0], clean) >= 0.95
    assert cosine(honest(differences), clean) < 0.0, "which the mean does not withstand"


def test_number_by_number_no_result_lies_outside_what_honest_sites_sent() -> None:
    differences = updates(5)
    rows = torch.stack([flat(differences[site]) for site in ("site-1", "site-2", "site-3")])
    for site in ("site-4", "site-5"):
        differences[site] = scaled(differences[site], 1e6)
    result = flat(aggregated(differences)[0])
    assert bool((result > rows.max(0).values).any())
    for rule in ("trimmed_mean", "median"):
        result = flat(combined(differences, RobustSection(rule=rule, faulty=2)))
        assert bool((result <= rows.max(0).values).all())
        assert bool((result >= rows.min(0).values).all())


@pytest.mark.parametrize(
    ("robust", "least"),
    [
        ({"rule": "trimmed_mean"}, 3),
        ({"rule": "trimmed_mean", "faulty": 2}, 5),
        ({"rule": "median", "faulty": 3}, 7),
        ({"rule": "krum"}, 5),
        ({"rule": "krum", "faulty": 2}, 7),
        ({"clip": "median"}, 3),
        ({}, 1),
    ],
    ids=str,
)
def test_every_rule_needs_as_many_sites_as_its_condition_says(robust: dict[str, Any], least: int) -> None:
    """Row 13: krum needs n > 2 f + 2, the others n > 2 f."""
    aggregated(updates(least), **robust)
    if least > 1:
        with pytest.raises(FedMedSegError, match=f"at least {least}"):
            aggregated(updates(least - 1), **robust)


def test_a_study_that_can_never_satisfy_its_rule_is_refused(study: Callable[..., Experiment]) -> None:
    federation = {"robust": {"rule": "krum", "faulty": 1}}
    with pytest.raises(ConfigurationError, match=r"federation\.quorum"):
        study(federation={**federation, "quorum": 4})
    fine = study(federation={**federation, "quorum": 5})
    with pytest.raises(ConfigurationError, match=r"federation\.robust"):
        check_quorum(study(federation=federation), 4)
    check_quorum(fine, 5)


@pytest.mark.parametrize(
    ("federation", "message"),
    [
        ({"robust": {"faulty": 2}}, r"federation\.robust\.faulty"),
        ({"robust": {"rule": "average"}}, r"federation\.robust\.rule"),
        ({"robust": {"rule": "median"}, "encryption": "ckks"}, r"federation\.robust"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(
    study: Callable[..., Experiment], federation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        study(federation=federation)


def test_the_limit_is_the_median_of_the_last_rounds_medians() -> None:
    assert running_median((), 3.0) == 3.0
    assert running_median((1.0, 9.0), 2.0) == 2.0
    assert running_median((99.0, 98.0, 4.0, 5.0, 6.0, 7.0), 100.0) == 6.0, "five rounds, no older ones"
    history = [
        {"stage": "training", "round": 0, "notes": {"updates": {"median": 4.0}}},
        {"stage": "other", "round": 0, "notes": {"updates": {"median": 9.0}}},
        {"stage": "training", "round": 1, "notes": None},
        {"stage": "training", "round": 2, "notes": {"updates": {"median": 5.0}}},
    ]
    assert earlier_medians(history, stage="training", number=2) == (4.0,)


def test_clipping_brings_a_long_update_to_the_running_median_and_leaves_short_ones() -> None:
    differences = updates(3)
    norms = {site: float(flat(one).norm()) for site, one in differences.items()}
    limit = 0.5 * min(norms.values())
    result, rule = aggregated(differences, clip="median", medians=(limit,) * 4)
    assert rule.notes["updates"]["limit"] == pytest.approx(limit)
    expected = sum(flat(one) * limit / norms[site] for site, one in differences.items()) / 3
    assert torch.allclose(flat(result), expected, rtol=1e-5, atol=1e-7)
    one = differences["site-1"]
    assert clipped(one, norm=1.0, limit=1.0) is one


def test_a_rule_of_order_counts_every_site_alike() -> None:
    examples = {"site-1": 100, "site-2": 1, "site-3": 1}
    assert aggregated(updates(3), examples=examples)[1].weights["site-1"] > 0.5
    assert set(aggregated(updates(3), examples=examples, rule="median")[1].weights.values()) == {1 / 3}


def test_krum_takes_the_update_nearest_to_the_others() -> None:
    """By hand: 0, 1, 1.1, 2 and 50 with one faulty; sums of the two nearest squares: 1.1 has 0.01 + 0.81."""
    differences = {
        f"site-{number}": {"w": torch.tensor([value])} for number, value in enumerate((0.0, 1.0, 1.1, 2.0, 50.0))
    }
    found = survey(differences, ["w"], exact=True)
    assert nearest_site(found, 1) == "site-2"
    assert combined(differences, RobustSection(rule="krum"))["w"].tolist() == pytest.approx([1.1])
    assert not math.isnan(float(found.distances.sum()))


def test_sites_are_compared_by_what_they_all_train_alone() -> None:
    """Of cardiac CT's heads each is some sites' own: a head that others leave alone makes nobody an outlier."""
    from fedmedseg.cardiac_ct.aggregator import TrainedHeadsAggregator
    from fedmedseg.cardiac_ct.plan import HEADS
    from fedmedseg.fedavg.aggregator import StrategyAggregator
    from fedmedseg.fedavg.sharing import CONTROL

    names = ["trunk.weight", f"{HEADS}ms.weight"]
    rule = TrainedHeadsAggregator.__new__(TrainedHeadsAggregator)
    assert rule.comparable(names) == ["trunk.weight"]
    names = ["trunk.weight", f"{CONTROL}trunk.weight"]
    assert StrategyAggregator.comparable(StrategyAggregator.__new__(StrategyAggregator), names) == ["trunk.weight"]
