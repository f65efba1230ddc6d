"""Conditional distillation by hand: what is learned, where, and how much of it."""

from __future__ import annotations

import doctest

import pytest
import torch

from fedmedseg.segviz import distillation
from fedmedseg.segviz.distillation import conditional, distillation_loss, elsewhere, weight_of


def logits_for(*probabilities: list[float]) -> torch.Tensor:
    return torch.log(torch.tensor(probabilities)).T[None]


def test_conditional_probabilities_leave_the_marked_organ_out() -> None:
    """0.2 and 0.3 of what is not organ 1, which has 0.5."""
    found = conditional(logits_for([0.2, 0.5, 0.3]), (1,), 1.0)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.4, 0.6]), atol=1e-4, rtol=0)


def test_the_temperature_softens() -> None:
    logits = torch.tensor([[[2.0], [0.0], [0.0]]])
    warm, cool = conditional(logits, (2,), 2.0), conditional(logits, (2,), 1.0)
    assert cool[0, 0, 0] > warm[0, 0, 0] > 0.5
    torch.testing.assert_close(warm[0, 0, 0], torch.sigmoid(torch.tensor(1.0)), atol=1e-4, rtol=0)


def test_nothing_is_distilled_where_truth_or_teacher_see_the_marked_organ() -> None:
    teacher = logits_for([0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.6, 0.2, 0.2])
    assert elsewhere(teacher, torch.tensor([[[1, 0, 0]]]), (1,)).tolist() == [[[0.0, 0.0, 1.0]]]


def test_the_loss_is_nothing_where_student_and_teacher_agree_and_has_a_value_by_hand_where_not() -> None:
    """Two voxels: student (0.4, 0.6), teacher (0.6, 0.4): each class 2 * 0.48 / (2 * (0.16 + 0.36))."""
    target, marks = torch.zeros(1, 1, 2, dtype=torch.int64), [(1,)]
    student = logits_for([0.2, 0.5, 0.3], [0.2, 0.5, 0.3])
    teacher = logits_for([0.6, 0.0001, 0.4], [0.6, 0.0001, 0.4])
    same = distillation_loss(teacher, teacher, target, marks, temperature=1.0)
    assert same.item() == pytest.approx(0.0, abs=1e-6)
    other = distillation_loss(student, teacher, target, marks, temperature=1.0)
    # both classes: ours 0.4 / 0.6, theirs 0.6 / 0.4
    assert other.item() == pytest.approx(1 - 0.48 / 0.52, abs=1e-3)


def test_an_item_that_marks_all_is_not_distilled() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    target = torch.zeros(2, 1, 4, dtype=torch.int64)
    both = distillation_loss(logits, -logits, target, [(1,), None], temperature=2.0)
    alone = distillation_loss(logits[:1], -logits[:1], target[:1], [(1,)], temperature=2.0)
    assert both.item() == pytest.approx(alone.item() / 2)


def test_the_weight_grows_from_the_first_round_to_the_last() -> None:
    assert doctest.testmod(distillation).failed == 0
    assert [round(weight_of(0.01, 1.0, number, 4), 2) for number in range(4)] == [0.01, 0.34, 0.67, 1.0]
    assert weight_of(0.01, 1.0, 0, 1) == 0.01
