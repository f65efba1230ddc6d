"""Units hold their own voxels, in order, whatever the dimension."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fedmedseg.networks.units import cut_units


def encoded_crop(grid: tuple[int, ...], unit: int) -> torch.Tensor:
    """(1, 1, *crop): every voxel holds 1000 times the number of its unit, plus its own number inside the unit."""
    image = torch.empty(1, 1, *[edge * unit for edge in grid])
    for number, place in enumerate(itertools.product(*[range(edge) for edge in grid])):
        inside = torch.arange(unit ** len(grid), dtype=torch.float32).reshape([unit] * len(grid))
        image[(0, 0, *[slice(at * unit, (at + 1) * unit) for at in place])] = 1000 * number + inside
    return image


@pytest.mark.parametrize(("grid", "unit"), [((2, 3), 4), ((3, 1), 2), ((2, 3, 4), 2), ((1, 2, 1), 3)])
def test_a_unit_holds_its_own_voxels_in_order(grid, unit):
    units = cut_units(encoded_crop(grid, unit), unit=unit)
    expected = 1000.0 * torch.arange(math.prod(grid))[:, None] + torch.arange(unit ** len(grid))[None]
    assert torch.equal(units, expected[None])


def test_several_channels_and_edges_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divide by 4"):
        cut_units(torch.zeros(1, 2, 8, 8), unit=4)
    with pytest.raises(ValueError, match="divide by 4"):
        cut_units(torch.zeros(1, 1, 8, 6), unit=4)
