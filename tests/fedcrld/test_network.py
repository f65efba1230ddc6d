"""The network's sizes, names and shapes; what reaches what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.fedcrld.network import RelocalizationNetwork
from fedmedseg.fedcrld.relocalization import Attention
from fedmedseg.networks.factory import encoder_names


@pytest.fixture
def network() -> RelocalizationNetwork:
    torch.manual_seed(1)
    return RelocalizationNetwork(classes=4, width=8)


@pytest.mark.parametrize(("classes", "parameters"), [(4, 33_240_324), (5, 33_240_389)])
def test_at_full_size_it_has_the_published_numbers_of_parameters(classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = RelocalizationNetwork(classes=classes)
    assert sum(one.numel() for one in network.parameters()) == parameters
    shared = {name: one for name, one in network.named_parameters() if name.startswith("globalnet.")}
    assert len(shared) == 32
    assert sum(one.numel() for one in shared.values()) == 5_478_912
    assert not list(network.buffers()), "nothing but parameters, so nothing is averaged that was not trained"


@pytest.mark.parametrize("shape", [(16, 16, 1), (16, 24, 3), (13, 17, 2)])
def test_any_number_of_slices_and_any_edge_come_back_as_they_were(
    network: RelocalizationNetwork, shape: tuple[int, ...]
) -> None:
    outputs = network.outputs(torch.randn(2, 1, *shape))
    assert outputs.logits.shape == (2, 4, *shape)
    coarse = (-(-shape[0] // 8), -(-shape[1] // 8))
    assert outputs.global_features.shape == outputs.local_features.shape == (2, 64, shape[2], *coarse)


def test_logits_leave_it_and_not_probabilities(network: RelocalizationNetwork) -> None:
    sums = network(torch.randn(1, 1, 16, 16, 2)).sum(dim=1)
    assert not torch.allclose(sums, torch.ones_like(sums), atol=0.1)


def test_depth_is_never_reduced_but_slices_see_their_neighbours(network: RelocalizationNetwork) -> None:
    image = torch.randn(1, 1, 16, 16, 4, requires_grad=True)
    encoder = network.globalnet
    slices = image.permute(0, 1, 4, 2, 3)
    assert [one.shape[2] for one in encoder(slices)] == [4] * 4
    for block in encoder.blocks:
        # group normalisation ties all slices: without it what is left is the convolutions' own reach
        block[1], block[4] = nn.Identity(), nn.Identity()
    for level, reached in enumerate(((True, True, False, False), (True, True, True, False))):
        image.grad = None
        encoder(slices)[level][:, :, 0].sum().backward()
        assert image.grad is not None
        assert tuple((image.grad.abs().sum(dim=(0, 1, 2, 3)) > 0).tolist()) == reached, "a slice further per block"


def test_skips_come_from_the_private_encoder_alone(network: RelocalizationNetwork) -> None:
    """Without the cross attention's answer nothing of the global encoder is left in the result."""
    image = torch.randn(1, 1, 16, 16, 2)
    with torch.no_grad():
        network.relocalization.cross_attention.output.weight.zero_()
        network.relocalization.cross_attention.output.bias.zero_()
        before = network(image)
        for parameter in network.globalnet.parameters():
            parameter.add_(0.1)
        torch.testing.assert_close(network(image), before)


def test_the_global_encoder_reaches_the_result_through_the_cross_attention(network: RelocalizationNetwork) -> None:
    network(torch.randn(1, 1, 16, 16, 2)).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in network.globalnet.blocks[-1].parameters())


def test_networks_of_other_label_maps_start_from_the_same_weights_but_for_the_last_layer(
    study: Callable[..., Experiment],
) -> None:
    from fedmedseg.segmentation.starts import initial_network

    three = initial_network(study())
    four = initial_network(study(data={"labels": {1: "a", 2: "b", 3: "c", 4: "d"}}))
    other = dict(four.named_parameters())
    for name, parameter in three.named_parameters():
        assert torch.equal(parameter, other[name]) is not name.startswith("output."), name


def test_the_factory_knows_its_encoder(study: Callable[..., Experiment]) -> None:
    from fedmedseg.networks.factory import build_segmentation

    model = build_segmentation(study())
    assert isinstance(model, RelocalizationNetwork)
    assert encoder_names(model, study()) == [n for n, _ in model.named_parameters() if n.startswith("globalnet.")]


@pytest.mark.parametrize("faithful", [False, True])
def test_width_and_tokens_are_the_studys(settings: Callable[..., dict[str, Any]], faithful: bool) -> None:
    from fedmedseg.networks.factory import build_segmentation

    content = settings()
    content["network"] = {"name": "relocalization", "width": 16, "faithful_reshape": faithful}
    model = build_segmentation(parse_experiment(content))
    assert model.output.in_channels == 16
    attentions = [one for one in model.modules() if isinstance(one, Attention)]
    assert [one.faithful_reshape for one in attentions] == [faithful] * 2


def test_every_norm_has_four_groups(network: RelocalizationNetwork) -> None:
    groups = [one.num_groups for one in network.modules() if isinstance(one, nn.GroupNorm)]
    assert set(groups) == {4}
    assert len(groups) == 2 * 8 + 1 + 6
