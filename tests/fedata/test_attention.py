"""The server's rule: attention weights worked out by hand, its limits, and what it must not depend on."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.core.averaging import weighted_mean
from fedmedseg.fedata.attention import (
    attention_weights,
    layer_attention,
    layer_group,
    layer_groups,
    published_attention,
    softmax,
)
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


def test_standardised_distances_tell_two_sites_apart_however_close_they_are():
    """z is 1 and -1 for any two sites: the odds are exp(2) : 1, where the mean's scale gives nearly FedAvg."""
    for far in (1.001, 3.0):
        weights = attention_weights({"a": 1.0, "b": far}, {"a": 1, "b": 1}, kappa=1.0, standardised=True)
        assert weights == pytest.approx({"a": 0.8808, "b": 0.1192}, abs=1e-4)


def test_standardised_weights_of_three_sites_by_hand():
    """d = 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3, and counts enter as factors."""
    spread = math.sqrt(14 / 3)
    odds = {"a": 2 * math.exp(2 / spread), "b": math.exp(1 / spread), "c": math.exp(-3 / spread)}
    weights = attention_weights({"a": 1, "b": 2, "c": 6}, {"a": 2, "b": 1, "c": 1}, kappa=1.0, standardised=True)
    assert weights == pytest.approx({site: value / sum(odds.values()) for site, value in odds.items()})


def test_standardised_sites_without_spread_share_by_cases():
    weights = attention_weights({"a": 0.4, "b": 0.4}, {"a": 1, "b": 3}, kappa=5.0, standardised=True)
    assert weights == pytest.approx({"a": 0.25, "b": 0.75})


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


def test_a_group_is_a_block_a_merging_an_embedding_a_token_or_a_whole_head(study):
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
        "decoder",
    }
    groups = layer_groups(initial_shared(study("unetr", (32, 32), pretext="ibot", pixel_weight=0.1)))
    assert {name for name in groups if not name.startswith("vit.")} == {"decoder", "head", "pixels"}
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


def test_standardising_reaches_the_aggregate_and_kappa_zero_is_fedavg_all_the_same(shared):
    differences, counts = _differences(shared, "abc"), {"a": 5, "b": 2, "c": 13}
    plain, _ = layer_attention(shared, differences, counts, kappa=1.0)
    found, _ = layer_attention(shared, differences, counts, kappa=1.0, standardised=True)
    assert any(not torch.allclose(found[name], plain[name]) for name in shared)
    flat, _ = layer_attention(shared, differences, counts, kappa=0.0, standardised=True)
    mean = weighted_mean(differences, {site: n / 20 for site, n in counts.items()})
    for name in shared:
        torch.testing.assert_close(flat[name], mean[name], rtol=1e-6, atol=1e-7)


def test_one_site_is_followed(shared):
    differences = _differences(shared, "a")
    for standardised in (False, True):
        found, _ = layer_attention(shared, differences, {"a": 7}, kappa=1.0, standardised=standardised)
        assert all(torch.equal(found[name], differences["a"][name]) for name in shared)


def no_draws(name):
    raise AssertionError("noise 0 draws nothing")


def test_published_weights_of_three_sites_by_hand():
    """|w_c - w| of 10, 12 and 9: exp(-2), 1 and exp(-3) over their sum; the farthest site takes nearly all."""
    shared = {"w": torch.zeros(2)}
    differences = {
        "a": {"w": torch.tensor([6.0, 8.0])},
        "b": {"w": torch.tensor([0.0, 12.0])},
        "c": {"w": torch.tensor([-9.0, 0.0])},
    }
    found, table = published_attention(shared, differences, step=1.2, noise=0.0, draws=no_draws)
    assert table["w"] == pytest.approx({"a": 0.11, "b": 0.84, "c": 0.04}, abs=0.005)
    total = math.exp(-2) + 1 + math.exp(-3)
    a, b, c = math.exp(-2) / total, 1 / total, math.exp(-3) / total
    assert found["w"].tolist() == pytest.approx([1.2 * (6 * a - 9 * c), 1.2 * (8 * a + 12 * b)], rel=1e-5)


def test_the_published_update_moves_towards_the_sites_and_overshoots_by_its_step():
    """FedAtt writes w - step * sum alpha (w - w_c): w = 5, both sites at 7, step 1.2 gives 7.4."""
    shared = {"w": torch.tensor([5.0])}
    differences = {site: {"w": torch.tensor([2.0])} for site in "ab"}
    found, table = published_attention(shared, differences, step=1.2, noise=0.0, draws=no_draws)
    assert table["w"] == {"a": 0.5, "b": 0.5}
    assert float(shared["w"] + found["w"]) == pytest.approx(7.4)


def test_published_distances_are_neither_relative_nor_shared_between_tensors():
    """Ten times the shared tensor changes no weight, ten times the difference changes those of its tensor alone."""
    one, ten = {"u": torch.ones(1), "v": torch.ones(1)}, {"u": torch.full((1,), 10.0), "v": torch.ones(1)}
    differences = {"a": {"u": torch.tensor([0.1]), "v": torch.tensor([0.1])}, "b": {n: torch.zeros(1) for n in "uv"}}
    _, table = published_attention(one, differences, step=1.0, noise=0.0, draws=no_draws)
    assert table == published_attention(ten, differences, step=1.0, noise=0.0, draws=no_draws)[1]
    differences["a"] = {"u": torch.tensor([1.0]), "v": torch.tensor([0.1])}
    _, other = published_attention(one, differences, step=1.0, noise=0.0, draws=no_draws)
    assert other["v"] == table["v"]
    assert other["u"]["a"] == pytest.approx(math.e / (1 + math.e))


def test_published_noise_is_drawn_per_tensor_and_scaled():
    shared = {"u": torch.zeros(40_000), "v": torch.zeros(40_000)}
    differences = {"a": shared}

    def draws(name):
        return torch.Generator().manual_seed({"u": 1, "v": 2}[name])

    found, _ = published_attention(shared, differences, step=1.2, noise=0.25, draws=draws)
    for seed, name in ((1, "u"), (2, "v")):
        drawn = torch.randn(40_000, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(found[name], 0.25 * drawn)
    again, _ = published_attention(shared, differences, step=1.2, noise=0.25, draws=draws)
    assert all(torch.equal(found[name], again[name]) for name in shared)


def test_the_published_rule_depends_on_no_order_and_refuses_other_tensors(shared):
    differences = _differences(shared, "abcd")
    one, table = published_attention(shared, differences, step=1.2, noise=0.0, draws=no_draws)
    other, again = published_attention(
        shared, {site: differences[site] for site in "dbca"}, step=1.2, noise=0.0, draws=no_draws
    )
    assert table == again
    assert all(torch.equal(one[name], other[name]) for name in shared)
    with pytest.raises(ValueError, match="exactly the shared tensors"):
        published_attention({"w": torch.ones(1)}, {"a": {"v": torch.ones(1)}}, step=1, noise=0, draws=no_draws)
    with pytest.raises(ValueError, match="needs sites"):
        published_attention({"w": torch.ones(1)}, {}, step=1, noise=0, draws=no_draws)


def test_no_distance_is_too_large_for_the_softmax():
    assert softmax({"b": 1e6, "a": 0.0}) == {"a": 0.0, "b": 1.0}
