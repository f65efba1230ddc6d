"""The BasicUNet's encoder: the layout and the sizes of the specification, and where its tensors belong."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.networks.factory import build_segmentation, encoder_names
from fedmedseg.networks.unet_encoder import Projector, UNetEncoder

SMALL = (8, 16, 16, 24, 32)


def test_full_size_has_the_published_widths(study):
    experiment = study("basic_unet", (352, 352))
    model = build_segmentation(experiment)
    trained = dict(model.named_parameters())
    encoder = [name for name in encoder_names(model, experiment) if name in trained]
    # 4 levels of two 3x3 convolutions with bias and batch norm, and a centre of two without a norm, by hand:
    # 48 * 10 + 48 * (9 * 48 + 1) + 4 * 48 = 21,456 of the first, and so on
    widths = (1, 48, 96, 192, 384, 768)
    expected = sum(
        out * (9 * before + 1) + out * (9 * out + 1) + (4 * out if level < 4 else 0)
        for level, (before, out) in enumerate(itertools.pairwise(widths))
    )
    assert sum(trained[name].numel() for name in encoder) == expected
    assert round(expected / 1e6, 2) == 10.60
    with torch.no_grad():
        assert UNetEncoder(model=model).eval()(torch.zeros(1, 1, 352, 352)).shape == (1, 768, 22, 22)


def test_encoder_and_network_compute_the_same_and_share_their_tensors(study):
    model = build_segmentation(study("basic_unet", (32, 48), features=SMALL)).eval()
    encoder = UNetEncoder(model=model).eval()
    kept = []
    model.down_4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    images = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        model(images)
        assert torch.equal(encoder(images), kept[0])
    assert {name: tensor.data_ptr() for name, tensor in encoder.named_parameters()} == {
        name: tensor.data_ptr()
        for name, tensor in model.named_parameters()
        if name.split(".")[0] in {"conv_0", "down_1", "down_2", "down_3", "down_4"}
    }


def test_encoder_names_are_the_encoders_parameters_and_statistics(study):
    experiment = study("basic_unet", (32, 32), features=SMALL)
    model = build_segmentation(experiment)
    names = encoder_names(model, experiment)
    expected = [
        name
        for name, tensor in model.state_dict().items()
        if name.startswith(("conv_0.", "down_")) and tensor.is_floating_point()
    ]
    assert names == expected
    assert sum(name.endswith("running_var") for name in names) == 8


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm2d), ("instance", nn.InstanceNorm2d), ("group", nn.GroupNorm)]
)
def test_the_norm_is_the_one_asked_for(study, norm, kind):
    model = build_segmentation(study("basic_unet", (32, 32), features=SMALL, norm=norm))
    norms = [module for module in model.modules() if isinstance(module, kind)]
    # two a level, of four levels down and four up; the centre has none
    assert len(norms) == 16
    if norm == "group":
        assert {module.num_channels // module.num_groups for module in norms} == {8}
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3, 32, 32)


def test_the_centre_may_have_norms_too(study):
    plain = build_segmentation(study("basic_unet", (32, 32), features=SMALL))
    normed = build_segmentation(study("basic_unet", (32, 32), features=SMALL, centre="norm"))
    assert not [name for name in plain.state_dict() if name.startswith("down_4") and "running" in name]
    assert [name for name in normed.state_dict() if name.startswith("down_4") and "running" in name]
    assert [type(module) for module in plain.down_4.convs.conv_1.adn] == [nn.ReLU]


def test_convolutions_start_from_hes_normal_distribution(study):
    torch.manual_seed(0)
    model = build_segmentation(study("basic_unet", (32, 32), features=(8, 16, 32, 64, 64)))
    weight = model.down_4.convs.conv_1.conv.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (1 + 0.01**2) / (64 * 9)) ** 0.5, rel=0.02)
    assert not any(bool(module.bias.any()) for module in model.modules() if isinstance(module, nn.Conv2d))


def test_groups_need_whole_widths(study):
    with pytest.raises(ValueError, match=r"multiples of 8 with network\.norm group"):
        study("basic_unet", (32, 32), features=(4, 8, 8, 8, 8), norm="group")


def test_a_deepest_map_of_one_pixel_needs_no_norm_there(study):
    build_segmentation(study("basic_unet", (16, 16), features=SMALL))
    with pytest.raises(ConfigurationError, match="at least one edge above 16 for basic_unet"):
        build_segmentation(study("basic_unet", (16, 16), features=SMALL, centre="norm", norm="instance"))


def test_the_projector_pools_and_projects():
    projector = Projector(width=3, hidden=4, out=2, norm=False)
    maps = torch.randn(5, 3, 2, 2)
    expected = projector.last(torch.relu(projector.first(maps.mean(dim=(2, 3)))))
    torch.testing.assert_close(projector(maps), expected)
    torch.testing.assert_close(projector(maps.mean(dim=(2, 3))), expected)


def test_the_projectors_norm_is_a_batch_norm_before_the_relu():
    projector = Projector(width=3, hidden=4, out=2, norm=True)
    assert isinstance(projector.norm, nn.BatchNorm1d)
    seen = []
    projector.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    projector(torch.randn(64, 3, 2, 2))
    torch.testing.assert_close(seen[0].mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
