"""The loss against MONAI's and against probabilities added up by hand."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from fedmedseg.core.errors import DataError
from fedmedseg.segmentation.loss import SegmentationLoss, marginal_logits, marginal_target


def batch(items=3, classes=4, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, classes, size, size, generator=generator)
    target = torch.randint(classes, (items, 1, size, size), generator=generator)
    return logits, target


def test_marginal_probabilities_are_the_sums_of_the_folded_ones():
    logits, _ = batch()
    probabilities = logits.softmax(1)
    folded = marginal_logits(logits, (2,)).softmax(1)
    torch.testing.assert_close(folded[:, 0], probabilities[:, [0, 1, 3]].sum(1))
    torch.testing.assert_close(folded[:, 1], probabilities[:, 2])


def test_with_every_structure_marked_nothing_is_folded():
    logits, _ = batch()
    assert marginal_logits(logits, (1, 2, 3)) is logits


def test_targets_are_numbered_as_the_folded_channels():
    target = torch.tensor([[[[0, 1], [2, 3]]]])
    assert marginal_target(target, (1, 3), 4).tolist() == [[[[0, 1], [0, 2]]]]


def test_fully_marked_batches_have_monais_dice_and_cross_entropy():
    logits, target = batch()
    reference = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, target)
    torch.testing.assert_close(SegmentationLoss()(logits, target, [None] * 3), reference)
    torch.testing.assert_close(SegmentationLoss()(logits, target, [(1, 2, 3), None, (3, 2, 1)]), reference)


def test_one_voxel_worked_out_by_hand():
    # logits 0, log 3 -> p = 1/4, 3/4 with truth 1: CE = -log 3/4, Dice loss = 1 - 2 * 3/4 / (3/4 + 1)
    logits = torch.tensor([0.0, 3.0]).clamp_min(1).log().reshape(1, 2, 1, 1)
    loss = SegmentationLoss()(logits, torch.ones(1, 1, 1, 1, dtype=torch.int64), [None])
    expected = -torch.log(torch.tensor(0.75)) + 1 - 1.5 / 1.75
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)


def test_items_with_other_marks_form_batches_weighted_by_their_number():
    logits, target = batch()
    target[0][target[0] != 2] = 0
    loss = SegmentationLoss()
    alone = loss(logits[:1], target[:1], [(2,)])
    others = loss(logits[1:], target[1:], [None, None])
    torch.testing.assert_close(loss(logits, target, [(2,), None, None]), alone / 3 + others * 2 / 3)


def test_an_unmarked_structure_is_not_pushed_down_where_the_truth_says_background():
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    target = torch.tensor([[[[1, 0], [0, 0]]]])
    SegmentationLoss()(logits, target, [(1,)]).backward()
    # class 2 is not marked: on background voxels it gets the background's gradient, not the opposite
    torch.testing.assert_close(logits.grad[0, 2], logits.grad[0, 0])
    logits.grad = None
    SegmentationLoss()(logits, target, [None]).backward()
    assert (logits.grad[0, 2, 1] > 0).all()
    assert (logits.grad[0, 0, 1] < 0).all()


@pytest.mark.parametrize("marked", [(), (4,), (0, 1)])
def test_marks_the_network_cannot_learn_are_refused(marked):
    logits, target = batch(items=1)
    with pytest.raises(DataError, match="annotated_labels"):
        SegmentationLoss()(logits, target, [marked])
