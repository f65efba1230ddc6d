"""Networks are MONAI's, built the same from the same seed, and name exactly what pretraining trains."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.networks.factory import build_segmentation, encoder_names

CASES = [("swin_unetr", (64, 64)), ("swin_unetr", (64, 32, 32)), ("unetr", (32, 32)), ("unetr", (32, 16, 16))]


@pytest.mark.parametrize(("name", "crop"), CASES)
def test_logits_have_a_channel_per_class_on_the_crop(study, name, crop):
    model = build_segmentation(study(name, crop))
    assert model(torch.randn(2, 1, *crop)).shape == (2, 3, *crop)


@pytest.mark.parametrize(("name", "crop"), CASES)
def test_the_same_seed_builds_the_same_weights(study, name, crop):
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build_segmentation(study(name, crop)).state_dict())
    torch.manual_seed(8)
    other = build_segmentation(study(name, crop)).state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], other[key]) for key in other)


@pytest.mark.parametrize(("name", "crop"), CASES)
def test_encoder_names_are_floating_tensors_of_the_segmentation_network(study, name, crop):
    experiment = study(name, crop)
    model = build_segmentation(experiment)
    state = model.state_dict()
    names = encoder_names(model, experiment)
    assert names
    assert len(set(names)) == len(names)
    assert all(state[key].is_floating_point() for key in names)
    assert {key.split(".")[0] for key in names} == {"swinViT" if name == "swin_unetr" else "vit"}


def test_full_size_swin_trains_5_70_of_its_8_06_million_encoder_parameters(study):
    experiment = study("swin_unetr", (96, 96, 96), feature_size=48, window=7, depths=(2, 2, 2, 2))
    model = build_segmentation(experiment)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    assert sum(sizes[key] for key in encoder_names(model, experiment)) == 5_696_562
    assert sum(size for key, size in sizes.items() if key.startswith("swinViT.")) == 8_062_002


@pytest.mark.parametrize(("name", "crop"), CASES)
def test_fused_attention_gives_the_same_logits_as_the_plain_one(study, name, crop):
    torch.manual_seed(0)
    model = build_segmentation(study(name, crop)).eval()
    images = torch.randn(1, 1, *crop)
    with torch.no_grad():
        fused = model(images)
        for module in model.modules():
            if hasattr(module, "use_flash_attention"):
                module.use_flash_attention = False
        plain = model(images)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_heads_that_do_not_divide_the_channels_are_refused(study):
    with pytest.raises(ConfigurationError, match=r"network.heads\[1\].*got 7.*divisor of the stage's 24"):
        build_segmentation(study("swin_unetr", (64, 64), heads=(3, 7, 12, 24)))


def test_a_crop_that_shrinks_to_one_voxel_is_refused(study):
    with pytest.raises(ConfigurationError, match=r"data.crop.*\[32, 32\].*Remedy: use 64"):
        build_segmentation(study("swin_unetr", (32, 32)))


@pytest.mark.parametrize(("drop_path", "random"), [(0.0, False), (0.5, True)])
def test_drop_path_leaves_out_branches_in_training_alone(study, drop_path, random):
    torch.manual_seed(0)
    encoder = build_segmentation(study("swin_unetr", (64, 64), drop_path=drop_path)).swinViT
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        trained = [encoder.train()(images)[-1] for _ in range(4)]
        kept = [encoder.eval()(images)[-1] for _ in range(2)]
    assert all(torch.equal(trained[0], other) for other in trained[1:]) is not random
    assert torch.equal(*kept)
