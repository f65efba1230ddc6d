"""The aggregator binds the rule that the study's settings choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import load_experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.personal import payloads
from fedmedseg.core.question import Round
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.wire import WHOLE, Schema
from fedmedseg.fedata.aggregator import AttentionAggregator
from fedmedseg.fedata.attention import layer_attention, published_attention
from fedmedseg.fedata.personal_models import pair_weights, personal_models, update_cosines
from fedmedseg.fedata.plan import stages

SHARED = {"vit.blocks.0.w": torch.full((3,), 2.0), "predictor.1.weight": torch.ones(2, 2)}
MOVED = {"site-1": 0.1, "site-2": 0.4}
DIFFERENCES = {site: {n: torch.full_like(t, by) for n, t in SHARED.items()} for site, by in MOVED.items()}
WEIGHTS = {"site-1": 0.25, "site-2": 0.75}


Call = Callable[..., tuple[Any, AttentionAggregator]]


@pytest.fixture
def combine(tmp_path: Path, settings: Callable[..., dict[str, Any]]) -> Call:
    """combine(kappa=0.0): what two sites' differences become under these settings, in round ``number``."""

    def call(
        *,
        number: int = 0,
        run: str = "run",
        shared: Any = SHARED,
        differences: Any = DIFFERENCES,
        personal: Any = None,
        top: Any = None,
        **section: Any,
    ) -> tuple[Any, AttentionAggregator]:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump({**settings("unetr", (32, 32), **section), **(top or {})}))
        rule = AttentionAggregator(experiment_file=str(file))
        rule.open_round(
            Round(
                run=run,
                stage="pretraining",
                number=number,
                base=content_sha256(shared),
                nonce="nonce",
                contract=stages(load_experiment(file))["pretraining"],
                schema=Schema(shared),
                shared=shared,
                personal=payloads(shared, personal or {}, WHOLE),
            )
        )
        rule.contributions = {
            site: Contribution(site=site, differences=tensors, examples=n, steps=1, train_seconds=0.0, metrics={})
            for (site, tensors), n in zip(differences.items(), (1, 3), strict=True)
        }
        return from_shareable(rule.aggregate(FLContext())).data, rule

    return call


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_layer_attention_is_the_default_and_takes_kappa_and_step_from_the_settings(combine: Callable[..., Any]) -> None:
    for section in ({}, {"kappa": 3.0}, {"server_step": 0.5}, {"standardised": True}):
        made, rule = combine(**section)
        expected, table = layer_attention(SHARED, DIFFERENCES, WEIGHTS, **{"kappa": 1.0, **section})
        assert equal(made, expected)
        assert rule.notes["attention"] == table
    assert not equal(combine(kappa=3.0)[0], combine()[0])
    assert not equal(combine(server_step=0.5)[0], combine()[0])
    assert not equal(combine(standardised=True)[0], combine()[0])


def test_fedavg_is_the_mean_weighted_by_cases_and_pays_no_attention(combine: Callable[..., Any]) -> None:
    made, rule = combine(server_aggregation="fedavg")
    assert equal(made, weighted_mean(DIFFERENCES, WEIGHTS))
    assert made["predictor.1.weight"][0, 0] == pytest.approx(0.25 * 0.1 + 0.75 * 0.4)
    assert not equal(made, combine()[0])
    assert "attention" not in rule.notes


def test_kappa_zero_and_fedavg_agree(combine: Callable[..., Any]) -> None:
    made, average = combine(kappa=0.0)[0], combine(server_aggregation="fedavg")[0]
    for name in SHARED:
        torch.testing.assert_close(made[name], average[name])


FEDATT = {"server_aggregation": "fedatt_faithful"}


def test_fedatt_takes_step_and_noise_from_the_settings_and_no_counts(combine: Call) -> None:
    made, rule = combine(**FEDATT, fedatt={"noise": 0.0})
    expected, table = published_attention(SHARED, DIFFERENCES, step=1.2, noise=0.0, draws=lambda name: None)
    assert equal(made, expected)
    assert rule.notes["attention"] == table
    assert sorted(table) == sorted(SHARED)
    stepped, _ = combine(**FEDATT, fedatt={"noise": 0.0, "step": 0.6})
    for name in SHARED:
        torch.testing.assert_close(stepped[name], made[name] / 2)


def test_fedatts_noise_belongs_to_seed_stage_round_and_tensor_and_to_no_run(combine: Call) -> None:
    quiet, _ = combine(**FEDATT, fedatt={"noise": 0.0})
    made, _ = combine(**FEDATT, number=2)
    for name in SHARED:
        drawn = torch.Generator().manual_seed(derive_seed(1, "fedatt", "pretraining", 2, name))
        torch.testing.assert_close(made[name] - quiet[name], 0.001 * torch.randn(SHARED[name].shape, generator=drawn))
    assert content_sha256(combine(**FEDATT, number=2, run="another")[0]) == content_sha256(made)
    assert not equal(combine(**FEDATT, number=3)[0], made)
    assert not equal(combine(**FEDATT, number=2, top={"seed": 8})[0], made)
    louder, _ = combine(**FEDATT, number=2, fedatt={"noise": 0.1})
    torch.testing.assert_close(louder["predictor.1.weight"] - quiet["predictor.1.weight"],
        100 * (made["predictor.1.weight"] - quiet["predictor.1.weight"]), rtol=1e-3, atol=1e-6)  # fmt: skip


PAIR = {"server_aggregation": "pair_att"}
APART = {
    "site-1": {"vit.blocks.0.w": torch.tensor([0.3, 0.0, 0.0]), "predictor.1.weight": torch.zeros(2, 2)},
    "site-2": {"vit.blocks.0.w": torch.tensor([0.3, 0.4, 0.0]), "predictor.1.weight": torch.zeros(2, 2)},
}


def test_pair_attention_gives_each_site_a_model_of_its_own_and_newcomers_the_mean(combine: Call) -> None:
    """Cosine 0.6: the own share is 1 / (1 + exp(-4)) at temperature 0.1."""
    made, rule = combine(**PAIR, differences=APART)
    assert equal(made, weighted_mean(APART, WEIGHTS))
    xi = rule.notes["pair_attention"]
    assert xi["site-1"]["site-1"] == xi["site-2"]["site-2"] == pytest.approx(1 / (1 + 2.718281828**-4), abs=1e-6)
    other = 1 - xi["site-1"]["site-1"]
    one, two = (rule.personal[site]["vit.blocks.0.w"] for site in ("site-1", "site-2"))
    torch.testing.assert_close(one, torch.tensor([2.3, 2 + 0.4 * other, 2.0]))
    torch.testing.assert_close(two, torch.tensor([2.3, 2 + 0.4 * (1 - other), 2.0]))
    assert "attention" not in rule.notes


def test_the_temperature_of_the_settings_decides_how_much_a_site_keeps(combine: Call) -> None:
    for temperature in (0.05, 0.1, 2.0):
        _, rule = combine(**PAIR, differences=APART, pair={"temperature": temperature})
        assert rule.notes["pair_attention"] == pair_weights(update_cosines(APART), temperature=temperature)
    assert rule.notes["pair_attention"]["site-1"]["site-1"] < 0.6


def test_pair_attention_builds_on_what_each_site_was_sent(combine: Call) -> None:
    """Round 2: site-2 started from a model of its own; likeness is of the updates, not of the models."""
    own = {"site-2": {"vit.blocks.0.w": torch.tensor([9.0, 9.0, 9.0])}}
    made, rule = combine(**PAIR, differences=APART, personal=own)
    starts = {"site-1": SHARED, "site-2": {**SHARED, **own["site-2"]}}
    xi = pair_weights(update_cosines(APART), temperature=0.1)
    expected = personal_models(SHARED, starts, APART, xi)
    assert all(equal(rule.personal[site], expected[site]) for site in expected)
    assert rule.notes["pair_attention"] == xi
    # the mean is of models: a quarter of 2.3 and three quarters of 9.3, less the shared 2
    assert float(made["vit.blocks.0.w"][0]) == pytest.approx(0.25 * 2.3 + 0.75 * 9.3 - 2)


def test_identical_sites_under_pair_attention_are_fedavg(combine: Call) -> None:
    same = dict.fromkeys(("site-1", "site-2"), APART["site-2"])
    made, rule = combine(**PAIR, differences=same)
    average, _ = combine(server_aggregation="fedavg", differences=same)
    for name in SHARED:
        torch.testing.assert_close(made[name], average[name])
        for site in same:
            torch.testing.assert_close(rule.personal[site][name], SHARED[name] + average[name])


@pytest.mark.parametrize("rule", ["layer_att", "fedavg", "fedatt_faithful"])
def test_only_pair_attention_makes_personal_models(combine: Call, rule: str) -> None:
    assert combine(server_aggregation=rule)[1].personal == {}


@pytest.mark.parametrize("rule", ["layer_att", "fedavg", "fedatt_faithful", "pair_att"])
def test_a_teacher_is_averaged_plainly_and_stands_in_no_other_tensors_way(combine: Call, rule: str) -> None:
    """0.25 * 1 + 0.75 * 5, without attention, step, noise or a copy for each site."""
    shared = {**SHARED, "teacher.vit.blocks.0.w": torch.zeros(3)}
    moves = {"site-1": 1.0, "site-2": 5.0}
    given = {
        site: {**tensors, "teacher.vit.blocks.0.w": torch.full((3,), moves[site])}
        for site, tensors in DIFFERENCES.items()
    }
    made, with_teacher = combine(server_aggregation=rule, shared=shared, differences=given)
    alone, without = combine(server_aggregation=rule)
    assert made.pop("teacher.vit.blocks.0.w").tolist() == [4.0, 4.0, 4.0]
    assert equal(made, alone)
    for kind in ("attention", "pair_attention"):
        assert with_teacher.notes.get(kind) == without.notes.get(kind)
    for site, tensors in with_teacher.personal.items():
        assert equal(tensors, without.personal[site])


def test_without_a_server_rule_tensors_are_refused(tmp_path: Path, settings: Callable[..., dict[str, Any]]) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings("unetr", (32, 32), server_aggregation="none", starts=["personal"])))
    rule = AttentionAggregator(experiment_file=str(file))
    contribution = Contribution(
        site="a", differences=DIFFERENCES["site-1"], examples=1, steps=1, train_seconds=0.0, metrics={}
    )
    with pytest.raises(ConfigurationError, match="server_aggregation: got 'none'"):
        rule.combine(SHARED, {"a": contribution}, {"a": 1.0})


def test_only_the_mean_can_do_with_replies_that_it_cannot_read(combine: Call) -> None:
    for rule in ("layer_att", "fedatt_faithful"):
        _, aggregator = combine(server_aggregation=rule)
        assert aggregator.needs_plain == f"fedata.server_aggregation {rule} reads the sites' differences"
    assert combine(server_aggregation="fedavg")[1].needs_plain == ""
