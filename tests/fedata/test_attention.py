"""The server's rule: attention weights worked out by hand, its limits, and what it must not depend on."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.core.aggregator import weighted_mean
from fedmedseg.fedata.attention import attention_weights, layer_attention, layer_group, layer_groups
from fedmedseg.fedata.plan import initial_shared


def test_weights_of_two_sites_by_hand():
    """d = 1 and 3: mean 2, z = -0.5 and 0.5; with n = 1 and 1 the odds are exp(1) : 1."""
    weights = attention_weights({"a": 1.0, "b": 3.0}, {"a": 1, "b": 1}, kappa=1.0)
    assert weights["a"] == pytest.approx(math.e / (1 + math.e))
    assert sum(weights.values()) == pytest.approx(1.0)


def test_counts_enter_as_factors():
    """exp(log n) = n: with equal distances the weights are the shares of cases."""
    weights = attention_weights({"a": 0.4, "b": 0.4}, {"a": 1, "b": 3}, kappa=5.0)
    assert weights == pytest.approx({"a": 0.25, "b": 0.75})


def test_nearly_equal_distances_are_nearly_fedavg():
    """Standardising by the spread would give 0.88 and 0.12 here."""
    weights = attention_weights({"a": 1.0, "b": 1.001}, {"a": 1, "b": 1}, kappa=1.0)
    assert weights == pytest.approx({"a": 0.5, "b": 0.5}, abs=3e-4)
    assert weights["a"] > weights["b"]


def test_sites_that_did_not_move_share_by_cases():
    assert attention_weights({"a": 0.0, "b": 0.0}, {"a": 2, "b": 6}, kappa=1.0) == pytest.approx({"a": 0.25, "b": 0.75})


@pytest.mark.parametrize(("kappa", "below"), [(0.0, False), (1.0, True), (3.0, True)])
def test_an_outlier_loses_weight_as_kappa_grows(kappa, below):
    weights = attention_weights({"a": 1.0, "b": 1.0, "far": 10.0}, {"a": 1, "b": 1, "far": 1}, kappa=kappa)
    assert (weights["far"] < 1 / 3 - 0.1) is below
    if kappa:
        assert (
            weights["far"]
            < attention_weights({"a": 1.0, "b": 1.0, "far": 10.0}, {"a": 1, "b": 1, "far": 1}, kappa=kappa / 2)["far"]
        )


def _differences(shared, sites, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        site: {name: (0.1 + 0.1 * k) * torch.randn(t.shape, generator=generator) for name, t in shared.items()}
        for k, site in enumerate(sites)
    }


@pytest.fixture
def shared(study):
    return initial_shared(study("swin_unetr", (64, 64)))


def test_a_group_is_a_block_a_merging_an_embedding_a_token_or_the_predictor(study):
    groups = layer_groups(initial_shared(study("swin_unetr", (64, 64))))
    assert set(groups) == {
        "swinViT.patch_embed",
        *[f"swinViT.layers{n}.0.blocks.0" for n in (1, 2, 3, 4)],
        "swinViT.layers4.0.blocks.1",
        *[f"swinViT.layers{n}.0.downsample" for n in (1, 2, 3)],
        "mask_token",
        "predictor",
    }
    groups = layer_groups(initial_shared(study("unetr", (32, 32))))
    assert set(groups) == {
        "vit.patch_embedding",
        *[f"vit.blocks.{n}" for n in range(12)],
        "vit.norm",
        "mask_token",
        "predictor",
    }
    assert layer_group("predictor.1.weight") == "predictor"


def test_every_groups_weights_sum_to_one(shared):
    _, table = layer_attention(shared, _differences(shared, "abc"), {"a": 5, "b": 2, "c": 9}, kappa=1.0)
    assert set(table) == set(layer_groups(shared))
    for weights in table.values():
        assert sum(weights.values()) == pytest.approx(1.0, abs=1e-12)


def test_kappa_zero_is_fedavg(shared):
    differences = _differences(shared, "abc")
    counts = {"a": 5, "b": 2, "c": 13}
    found, _ = layer_attention(shared, differences, counts, kappa=0.0)
    plain = weighted_mean(differences, {site: n / 20 for site, n in counts.items()})
    for name in shared:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-7)
    other, _ = layer_attention(shared, differences, counts, kappa=1.0)
    assert any(not torch.allclose(found[name], other[name]) for name in shared)


def test_one_number_by_hand():
    """w_g = 2; differences 1 and -3: d = 0.5 and 1.5, z = -0.5 and 0.5, alpha = e/(1+e) and 1/(1+e)."""
    shared = {"vit.norm.weight": torch.tensor([2.0])}
    differences = {"a": {"vit.norm.weight": torch.tensor([1.0])}, "b": {"vit.norm.weight": torch.tensor([-3.0])}}
    found, table = layer_attention(shared, differences, {"a": 4, "b": 4}, kappa=1.0, server_step=0.5)
    alpha = math.e / (1 + math.e)
    assert table["vit.norm"]["a"] == pytest.approx(alpha)
    assert float(found["vit.norm.weight"]) == pytest.approx(0.5 * (alpha - 3 * (1 - alpha)))


def test_groups_are_judged_on_their_own(shared):
    """A site far off in one block loses weight there and nowhere else."""
    differences = _differences(shared, "ab")
    differences["b"] = {name: difference.clone() for name, difference in differences["a"].items()}
    for name in layer_groups(shared)["swinViT.layers2.0.blocks.0"]:
        differences["b"][name] *= 20
    _, table = layer_attention(shared, differences, {"a": 1, "b": 1}, kappa=1.0)
    assert table.pop("swinViT.layers2.0.blocks.0")["b"] < 0.2
    assert all(weights["b"] == pytest.approx(0.5) for weights in table.values())


def test_the_order_of_arrival_changes_no_bit(shared):
    differences = _differences(shared, "abcd")
    counts = {"a": 5, "b": 2, "c": 13, "d": 1}
    one, table = layer_attention(shared, differences, counts, kappa=1.0)
    for order in ("dcba", "bdac"):
        other, other_table = layer_attention(shared, {s: differences[s] for s in order}, counts, kappa=1.0)
        assert table == other_table
        assert all(torch.equal(one[name], other[name]) for name in shared)


@pytest.mark.parametrize("counts", [{"a": 1}, {"a": 1, "b": 0}])
def test_a_site_without_cases_is_refused(counts):
    shared = {"mask_token": torch.ones(2)}
    with pytest.raises(ValueError, match="positive count"):
        layer_attention(shared, {"a": shared, "b": shared}, counts, kappa=1.0)


def test_differences_of_other_tensors_are_refused():
    with pytest.raises(ValueError, match="exactly the shared tensors"):
        layer_attention({"mask_token": torch.ones(2)}, {"a": {"other": torch.ones(2)}}, {"a": 1}, kappa=1.0)
