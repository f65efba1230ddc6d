"""Pixel targets lie in the order of the tokens, and their losses are worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.fedata.network import MaskedEncoder
from fedmedseg.fedata.pixels import normalised_units, pixel_l1, pixel_mse
from fedmedseg.networks.units import cut_units


@pytest.mark.parametrize(
    ("network", "crop"),
    [("unetr", (32, 48)), ("unetr", (32, 48, 16)), ("swin_unetr", (64, 32)), ("swin_unetr", (32, 64, 32))],
)
def test_units_are_in_the_order_of_the_encoders_tokens(study, network, crop):
    """Hiding token i must hide exactly the voxels of unit i from the encoder, and no others."""
    model = MaskedEncoder(experiment=study(network, crop, mask_ratio=0.5, masked_tokens="replace")).eval()
    embedding = model.encoder.patch_embedding.patch_embeddings if network == "unetr" else model.encoder.patch_embed
    grid = tuple(edge // 16 for edge in crop)
    images = torch.randn(1, 1, *crop)
    units = cut_units(images, unit=16)
    for number in (0, 1, math.prod(grid) - 2):
        changed = images.clone()
        place = torch.unravel_index(torch.tensor(number), grid)
        changed[(0, 0, *[slice(int(at) * 16, int(at) * 16 + 16) for at in place])] += 1.0
        different = (cut_units(changed, unit=16) != units).any(-1)[0]
        assert different.nonzero().flatten().tolist() == [number]
        with torch.no_grad():
            tokens = (embedding(changed) != embedding(images)).any(1)[0]
        while tokens.shape != grid:
            for axis, edge in enumerate(grid):
                tokens = tokens.unflatten(axis, (edge, -1)).any(axis + 1)
        assert tokens.flatten().nonzero().flatten().tolist() == [number]


def test_a_normalised_unit_by_hand():
    """1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 3 over n - 1."""
    units = torch.tensor([[[1.0, 3.0, 5.0, 7.0]]])
    expected = torch.tensor([[[-3.0, -1.0, 1.0, 3.0]]]) / math.sqrt(20 / 3 + 1e-6)
    torch.testing.assert_close(normalised_units(units), expected)


def test_normalising_forgets_brightness_and_contrast_of_a_unit_and_air_becomes_zero():
    units = torch.randn(2, 3, 64)
    torch.testing.assert_close(normalised_units(units * 5 + 2), normalised_units(units), rtol=1e-4, atol=1e-4)
    assert torch.equal(normalised_units(torch.full((1, 2, 8), 4.0)), torch.zeros(1, 2, 8))


def test_losses_by_hand():
    prediction, units = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[1.0, -3.0], [1.0, 1.0]]])
    assert float(pixel_l1(prediction, units)) == pytest.approx(4 / 4)
    assert float(pixel_mse(prediction, units)) == pytest.approx(10 / 4)
