"""The decoder: tokens at their places, mask tokens at the others, predictions of the hidden ones in their order."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.fedata.decoder import Decoder, decoder_width
from fedmedseg.fedata.masking import places, random_masks


def make(grid=(2, 3), fills=True, **changed):
    torch.manual_seed(0)
    settings = {"width_in": 8, "width_out": 5, "width": 24, "depth": 2, "heads": 2} | changed
    return Decoder(grid=grid, fills=fills, **settings).eval()


def some_places(grid=(2, 3), crops=2, ratio=0.5):
    torch.manual_seed(1)
    return places(random_masks(crops, tuple(16 * edge for edge in grid), unit=16, ratio=ratio))


@pytest.mark.parametrize(
    ("width", "heads", "dims", "expected"), [(384, 6, 3, 192), (768, 6, 2, 384), (24, 6, 2, 12), (40, 6, 3, 24)]
)
def test_the_width_is_half_a_tokens_rounded_up_to_what_divides(width, heads, dims, expected):
    assert decoder_width(width, heads=heads, spatial_dims=dims) == expected


@pytest.mark.parametrize("grid", [(2, 3), (2, 1, 3)])
def test_filling_is_what_a_loop_over_places_makes(grid):
    """The sequence that enters the blocks: embedded tokens at visible places, the mask token elsewhere, positions."""
    decoder, where = make(grid), some_places(grid)
    tokens = torch.randn(2, where.visible.shape[1], 8)
    seen = []
    decoder.blocks[0].register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    out = decoder(tokens, where)
    assert out.shape == (2, where.hidden.shape[1], 5)
    expected = torch.empty_like(seen[0])
    for crop in range(2):
        for place in range(expected.shape[1]):
            found = (where.visible[crop] == place).nonzero().flatten().tolist()
            content = decoder.embed(tokens[crop])[found[0]] if found else decoder.mask_token
            expected[crop, place] = content + decoder.positions[0, place]
    torch.testing.assert_close(seen[0], expected)
    x = seen[0]
    for block in decoder.blocks:
        x = block(x)
    everywhere = decoder.out(decoder.norm(x))
    for crop in range(2):
        torch.testing.assert_close(out[crop], everywhere[crop, where.hidden[crop]])


def test_without_filling_the_tokens_stand_everywhere_and_there_is_no_mask_token():
    decoder, where = make(fills=False), some_places()
    assert "mask_token" not in dict(decoder.named_parameters())
    assert decoder(torch.randn(2, 6, 8), where).shape == (2, where.hidden.shape[1], 5)


@pytest.mark.parametrize("fills", [True, False])
def test_every_parameter_gets_a_gradient_and_positions_are_none(fills):
    decoder, where = make(fills=fills), some_places()
    count = where.visible.shape[1] if fills else 6
    decoder(torch.randn(2, count, 8), where).square().sum().backward()
    parameters = dict(decoder.named_parameters())
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in parameters.values())
    assert "positions" not in parameters
    assert "positions" not in decoder.state_dict()


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
def test_every_place_has_a_position_of_its_own_and_neighbours_along_an_axis_share_the_others(grid):
    positions = make(grid).positions[0]
    assert len(positions.unique(dim=0)) == len(positions)
    table = positions.reshape(*grid, -1)
    for axis in range(len(grid)):
        changed = (table.select(axis, 0) != table.select(axis, 1)).flatten(0, -2).any(0)
        assert 0 < int(changed.sum()) <= 24 // len(grid)


def test_depth_and_width_are_those_asked_for():
    decoder = make(depth=3, width=12)
    assert len(decoder.blocks) == 3
    assert decoder.embed.out_features == 12
    assert decoder.blocks[0].mlp.linear1.out_features == 48
