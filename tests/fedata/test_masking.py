"""Masks hide the declared share of aligned units, independently for each crop."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.fedata.masking import masked_units, pick, places, random_masks


def test_152_of_216_units_of_a_96_cube_are_masked():
    torch.manual_seed(0)
    masks = random_masks(5, (96, 96, 96), unit=16, ratio=0.7)
    assert masks.shape == (5, 6, 6, 6)
    assert masks.dtype == torch.bool
    assert masks.flatten(1).sum(1).tolist() == [152] * 5


def test_the_number_of_masked_units_is_rounded_up():
    assert [masked_units(units, 0.7) for units in (4, 10, 16, 216)] == [3, 7, 12, 152]
    assert masked_units(100, 0.55) == 55


def test_crops_of_one_batch_have_different_masks():
    torch.manual_seed(0)
    first, second = random_masks(2, (96, 96), unit=16, ratio=0.7)
    assert not torch.equal(first, second)


def test_every_unit_is_masked_equally_often():
    torch.manual_seed(0)
    share = random_masks(4000, (64, 64), unit=16, ratio=0.7).float().mean(0)
    torch.testing.assert_close(share, torch.full((4, 4), 12 / 16), atol=0.03, rtol=0)


def test_a_generator_fixes_the_masks_and_leaves_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = [random_masks(3, (64, 64), unit=16, ratio=0.7, generator=torch.Generator().manual_seed(9)) for _ in "ab"]
    assert torch.equal(*drawn)
    assert torch.equal(before, torch.get_rng_state())


def test_places_are_those_of_the_mask_in_the_order_of_the_tokens():
    masks = torch.tensor([[[True, False, False], [True, True, False]], [[False, True, True], [False, False, True]]])
    where = places(masks)
    assert where.hidden.tolist() == [[0, 3, 4], [1, 2, 5]]
    assert where.visible.tolist() == [[1, 2, 5], [0, 3, 4]]
    tokens = torch.randn(2, 6, 4)
    assert torch.equal(pick(tokens, where.hidden).flatten(0, 1), tokens[masks.flatten(1)])
    assert torch.equal(pick(tokens, where.visible).flatten(0, 1), tokens[~masks.flatten(1)])


def test_crops_that_hide_different_numbers_are_refused():
    with pytest.raises(ValueError, match=r"equally many tokens in every crop, not \[1, 2\]"):
        places(torch.tensor([[True, False, False], [True, True, False]]))
