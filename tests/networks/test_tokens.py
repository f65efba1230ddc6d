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


def _dropped(crop, ratio=0.6):
    """Masks of two crops that hide equally many units, and the numbers of the visible ones."""
    units = 1
    for edge in crop:
        units *= edge // 16
    torch.manual_seed(2)
    order = torch.rand(2, units).argsort(1)
    kept = max(2, units - int(ratio * units))
    mask = torch.ones(2, units, dtype=torch.bool).scatter(1, order[:, :kept], False)
    return mask, order[:, :kept].sort(1).values


@pytest.mark.parametrize("crop", [(64, 48), (48, 32, 32)])
def test_dropping_is_running_monais_blocks_on_the_visible_tokens_alone(encoder, crop):
    """The same bits as MONAI's blocks on what a loop over crops picks by the mask from the embedded units."""
    _, module = encoder("unetr", crop)
    mask, visible = _dropped(crop)
    images = torch.randn(2, 1, *crop)
    entered = []
    module.blocks[0].register_forward_pre_hook(lambda _module, given: entered.append(given[0]))
    with torch.no_grad():
        found = vit.block_tokens(module, images, top=3, visible=visible)
        everywhere = module.patch_embedding(images)
        expected = torch.stack([everywhere[row][~mask[row]] for row in range(2)])
        # one sum of 16 ** dims products each, in another order
        torch.testing.assert_close(entered[0], expected, rtol=1e-5, atol=1e-5)
        x, outputs = entered[0], []
        for block in list(module.blocks):
            x = block(x)
            outputs.append(x)
    assert len(found) == 3
    assert found[0].shape == (2, visible.shape[1], 24)
    assert all(torch.equal(one, other) for one, other in zip(found, outputs[-3:], strict=True))


def test_what_dropping_embeds_has_the_gradient_of_monais_convolution(encoder):
    _, module = encoder("unetr", (48, 32, 32))
    module = module.double()
    mask, visible = _dropped((48, 32, 32))
    images = torch.randn(2, 1, 48, 32, 32, dtype=torch.float64)
    weights = torch.randn(2, visible.shape[1], 24, dtype=torch.float64)
    gradients = []
    embedded = module.patch_embedding(images)[~mask].unflatten(0, (2, -1))
    for x in (embedded, vit._embed_visible(module.patch_embedding, images, visible)):
        module.zero_grad()
        (x * weights).sum().backward()
        gradients.append({name: one.grad.clone() for name, one in module.patch_embedding.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("crop", [(64, 48), (48, 32, 32)])
def test_dropping_is_full_attention_whose_keys_are_the_visible_tokens(encoder, crop):
    """In double precision, all tokens through all blocks with hidden keys excluded: visible rows agree."""
    _, module = encoder("unetr", crop)
    module = module.double()
    mask, visible = _dropped(crop)
    images = torch.randn(2, 1, *crop, dtype=torch.float64)
    with torch.no_grad():
        (found,) = vit.block_tokens(module, images, top=1, visible=visible)
        x = module.patch_embedding(images)
        for block in module.blocks:
            x = block(x, attn_mask=~mask[:, None, None, :])
    expected = torch.stack([x[row][~mask[row]] for row in range(2)])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_dropped_content_cannot_be_seen_and_visible_content_can(encoder):
    _, module = encoder("unetr", (32, 32))
    images = torch.randn(1, 1, 32, 32)
    visible = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        plain = vit.block_tokens(module, images, top=1, visible=visible)[0]
        hidden, seen = images.clone(), images.clone()
        hidden[..., :16, :16] += 5.0
        seen[..., 16:, 16:] += 5.0
        assert torch.equal(plain, vit.block_tokens(module, hidden, top=1, visible=visible)[0])
        assert not torch.equal(plain, vit.block_tokens(module, seen, top=1, visible=visible)[0])
