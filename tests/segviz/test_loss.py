"""The losses on a few voxels, by hand."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.errors import DataError
from fedmedseg.segviz.loss import MarginalDice, exclusion_dice


def logits_for(*probabilities: list[float]) -> torch.Tensor:
    """Logits (1, C, voxels) whose softmax are these probabilities, one list per voxel."""
    return torch.log(torch.tensor(probabilities)).T[None]


def test_the_loss_is_soft_dice_with_background() -> None:
    """Background: 2 * 0.75 / (1 + 1.0); organ: 2 * 0.75 / (1 + 1.0)."""
    logits = logits_for([0.75, 0.25], [0.25, 0.75])
    target = torch.tensor([[[0, 1]]])
    assert MarginalDice()(logits, target, [None]).item() == pytest.approx(0.25, abs=1e-4)


def test_what_is_not_marked_counts_as_background() -> None:
    """Probabilities 0.5 and 0.25 of background and organ 2 become a background of 0.75 where only organ 1 is marked."""
    logits = logits_for([0.5, 0.25, 0.25], [0.125, 0.75, 0.125])
    target = torch.tensor([[[0, 1]]])
    assert MarginalDice()(logits, target, [(1,)]).item() == pytest.approx(0.25, abs=1e-4)
    # the same organ under another number
    assert MarginalDice()(logits[:, [0, 2, 1]], 2 * target, [(2,)]).item() == pytest.approx(0.25, abs=1e-4)


def test_items_that_mark_differently_are_weighted_by_their_number() -> None:
    logits = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([[[0, 1, 1, 0, 0]], [[0, 1, 0, 0, 0]], [[2, 2, 0, 0, 0]]])
    loss = MarginalDice()
    every = [(1,), (1,), (2,)]
    alone = [loss(logits[item : item + 1], target[item : item + 1], every[item : item + 1]) for item in range(3)]
    together = loss(logits, target, every)
    assert together.item() == pytest.approx(sum(part.item() for part in alone) / 3, abs=1e-6)


def test_a_channel_without_a_mark_gets_its_gradient_through_the_background_alone() -> None:
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    MarginalDice()(logits, torch.tensor([[[1, 1, 0, 0]]]), [(1,)]).backward()
    assert torch.allclose(logits.grad[:, 0], logits.grad[:, 2])


def test_exclusion_is_the_overlap_of_what_is_not_marked_with_what_is() -> None:
    """Organ 1 is marked at voxel 0, where organ 2 has 0.5; it has 0.25 elsewhere: 2 * 0.5 / (1 + 0.75)."""
    logits = logits_for([0.25, 0.25, 0.5], [0.5, 0.25, 0.25])
    target = torch.tensor([[[1, 0]]])
    assert exclusion_dice(logits, target, [(1,)]).item() == pytest.approx(1 / 1.75, abs=1e-4)
    assert exclusion_dice(logits, target, [None]).item() == 0.0
    # half of the batch marks all
    both = exclusion_dice(logits.repeat(2, 1, 1), target.repeat(2, 1, 1), [(1,), None])
    assert both.item() == pytest.approx(0.5 / 1.75, abs=1e-4)


def test_exclusion_pushes_the_unmarked_organ_out_of_the_marked_one() -> None:
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    exclusion_dice(logits, torch.tensor([[[1, 0]]]), [(1,)]).backward()
    assert logits.grad[0, 2, 0] > 0, "less of organ 2 where organ 1 is"
    assert logits.grad[0, 2, 1] < 0


@pytest.mark.parametrize("marks", [(), (3,), (0, 1)])
def test_marks_that_the_network_does_not_have_are_refused(marks: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="annotated_labels"):
        MarginalDice()(torch.zeros(1, 3, 2), torch.zeros(1, 1, 2, dtype=torch.int64), [marks])
