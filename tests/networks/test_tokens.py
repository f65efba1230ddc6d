"""Tokens read from MONAI's encoders are what MONAI computes itself, and masked content does not reach them."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.networks import swin, vit
from fedmedseg.networks.factory import build_segmentation

CASES = [("swin_unetr", (64, 64)), ("swin_unetr", (64, 32, 32)), ("unetr", (32, 32)), ("unetr", (32, 16, 16))]


@pytest.fixture
def encoder(study):
    def make(name, crop, **network):
        torch.manual_seed(0)
        model = build_segmentation(study(name, crop, **network)).eval()
        return (swin, model.swinViT) if name == "swin_unetr" else (vit, model.vit)

    return make


@pytest.mark.parametrize(
    ("name", "crop", "network"),
    [
        *[(name, crop, {}) for name, crop in CASES],
        ("swin_unetr", (96, 64), {"window": 3}),
        ("swin_unetr", (128, 96), {"window": 5, "depths": (1, 1, 1, 3)}),
    ],
)
def test_unmasked_tokens_are_the_outputs_of_monais_own_blocks(encoder, name, crop, network):
    reader, module = encoder(name, crop, **network)
    blocks = module.layers4[0].blocks if reader is swin else module.blocks
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _module, _inputs, result: seen.append(result))
    images = torch.randn(2, 1, *crop)
    with torch.no_grad():
        module(images)
        expected = [result.reshape(2, -1, result.shape[-1]) for result in seen[-2:]]
        found = reader.block_tokens(module, images, top=2)
    assert len(found) == 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "crop"), CASES)
def test_there_is_one_token_per_16_voxels_and_axis(encoder, name, crop):
    reader, module = encoder(name, crop)
    count = 1
    for edge in crop:
        count *= edge // reader.STRIDE
    (tokens,) = reader.block_tokens(module, torch.randn(1, 1, *crop), top=1)
    assert tokens.shape == (1, count, reader.token_width(module))


@pytest.mark.parametrize(("name", "crop"), CASES)
def test_what_is_masked_cannot_be_seen_and_what_is_visible_can(encoder, name, crop):
    reader, module = encoder(name, crop)
    grid = tuple(edge // 16 for edge in crop)
    mask = torch.zeros(1, *grid, dtype=torch.bool)
    mask.flatten()[0] = True
    corner = (..., *[slice(0, 16)] * len(crop))
    token = torch.randn(reader.mask_width(module))
    images = torch.randn(1, 1, *crop)

    def tokens(changed):
        with torch.no_grad():
            return reader.block_tokens(module, changed, top=1, mask=mask, mask_token=token)[0]

    hidden, visible = images.clone(), images.clone()
    hidden[corner] += 5.0
    visible[..., -1] += 5.0
    assert torch.equal(tokens(images), tokens(hidden))
    assert not torch.equal(tokens(images), tokens(visible))


def test_a_coarse_mask_repeats_onto_the_patches():
    coarse = torch.tensor([[[True, False]]])
    assert swin.expand(coarse, (2, 4)).tolist() == [[[True, True, False, False], [True, True, False, False]]]


def test_vit_position_embeddings_stay_under_the_mask(encoder):
    """With everything masked, tokens differ by their position only; without positions they would be equal."""
    _, module = encoder("unetr", (32, 32))
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    token = torch.zeros(24)

    def spread():
        with torch.no_grad():
            (tokens,) = vit.block_tokens(module, torch.randn(1, 1, 32, 32), top=1, mask=mask, mask_token=token)
        return float(tokens.std(dim=1).max())

    assert spread() > 1e-3
    torch.nn.init.zeros_(module.patch_embedding.position_embeddings)
    assert spread() < 1e-6
