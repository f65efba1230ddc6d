"""The aggregator binds the rule that the study's settings choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedmedseg.core.aggregator import Contribution, weighted_mean
from fedmedseg.fedata.aggregator import AttentionAggregator
from fedmedseg.fedata.attention import layer_attention

SHARED = {"vit.blocks.0.w": torch.full((3,), 2.0), "predictor.1.weight": torch.ones(2, 2)}
MOVED = {"site-1": 0.1, "site-2": 0.4}
DIFFERENCES = {site: {n: torch.full_like(t, by) for n, t in SHARED.items()} for site, by in MOVED.items()}
WEIGHTS = {"site-1": 0.25, "site-2": 0.75}


@pytest.fixture
def combine(tmp_path: Path, settings: Callable[..., dict[str, Any]]) -> Callable[..., tuple[Any, AttentionAggregator]]:
    """combine(kappa=0.0): what two sites' differences become under these settings."""

    def call(**section: Any) -> tuple[Any, AttentionAggregator]:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(settings("unetr", (32, 32), **section)))
        rule = AttentionAggregator(experiment_file=str(file))
        given = {
            site: Contribution(site=site, differences=tensors, examples=1, steps=1, train_seconds=0.0, metrics={})
            for site, tensors in DIFFERENCES.items()
        }
        return rule.combine(SHARED, given, WEIGHTS), rule

    return call


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_layer_attention_is_the_default_and_takes_kappa_and_step_from_the_settings(combine: Callable[..., Any]) -> None:
    for section in ({}, {"kappa": 3.0}, {"server_step": 0.5}):
        made, rule = combine(**section)
        expected, table = layer_attention(
            SHARED, DIFFERENCES, WEIGHTS, kappa=section.get("kappa", 1.0), server_step=section.get("server_step", 1.0)
        )
        assert equal(made, expected)
        assert rule.notes["attention"] == table
    assert not equal(combine(kappa=3.0)[0], combine()[0])
    assert not equal(combine(server_step=0.5)[0], combine()[0])


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
