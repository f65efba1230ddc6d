"""iBOT's head, temperatures, centre and cross-entropy, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.fedata.pretexts import other_crop
from fedmedseg.fedata.prototypes import PrototypeHead, mean_scores, next_centre, prototype_loss, teacher_temperature


@pytest.fixture
def head():
    torch.manual_seed(0)
    return PrototypeHead(width=6, hidden=12, bottleneck=5, prototypes=7)


def test_scores_are_cosines_of_the_bottleneck_with_the_prototypes(head):
    tokens = torch.randn(2, 3, 6)
    scores = head(tokens)
    assert scores.shape == (2, 3, 7)
    bottleneck = head.mlp(
        (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    )
    expected = torch.cosine_similarity(bottleneck.unsqueeze(-2), head.prototypes, dim=-1)
    torch.testing.assert_close(scores, expected)


def test_neither_the_scale_of_a_token_nor_that_of_a_prototype_matters(head):
    tokens = torch.randn(4, 6)
    scores = head(tokens)
    with torch.no_grad():
        head.prototypes.mul_(3.0)
    torch.testing.assert_close(head(tokens * 50), scores, rtol=1e-3, atol=1e-4)


def test_every_weight_of_the_head_gets_a_gradient(head):
    (head(torch.randn(4, 6)) * torch.randn(4, 7)).sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in head.parameters())


@pytest.mark.parametrize(("position", "expected"), [(0, 0.04), (10, 0.055), (20, 0.07), (21, 0.07), (99, 0.07)])
def test_the_teachers_temperature_rises_linearly_over_a_share_of_all_steps(position, expected):
    assert teacher_temperature(position, 100, start=0.04, end=0.07, warmup=0.2) == pytest.approx(expected)


def test_without_a_warm_up_the_last_temperature_holds_from_the_start():
    assert teacher_temperature(0, 100, start=0.04, end=0.07, warmup=0.0) == 0.07


def test_one_token_by_hand():
    """Teacher ((0.2, 0) - (0.1, 0)) / 0.1 = (1, 0); student (0.1, 0) / 0.5 = (0.2, 0)."""
    loss = prototype_loss(
        torch.tensor([[0.1, 0.0]]),
        torch.tensor([[0.2, 0.0]]),
        centre=torch.tensor([0.1, 0.0]),
        student_temperature=0.5,
        teacher_temperature=0.1,
    )
    first = math.e / (math.e + 1)
    log = [0.2 - math.log(math.exp(0.2) + 1), -math.log(math.exp(0.2) + 1)]
    assert float(loss) == pytest.approx(-(first * log[0] + (1 - first) * log[1]))


def test_every_switch_of_the_loss_changes_it():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    given = {"centre": torch.zeros(5), "student_temperature": 0.1, "teacher_temperature": 0.05}
    plain = prototype_loss(student, teacher, **given)
    for change in ({"centre": torch.randn(5)}, {"student_temperature": 0.2}, {"teacher_temperature": 0.2}):
        assert not torch.equal(plain, prototype_loss(student, teacher, **given | change))


def test_no_gradient_reaches_the_teacher():
    student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    prototype_loss(
        student, teacher, centre=torch.zeros(5), student_temperature=0.1, teacher_temperature=0.05
    ).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_centre_follows_the_mean_over_all_tokens_by_its_momentum():
    scores = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[5.0, 4.0], [7.0, 4.0]]])
    assert mean_scores(scores).tolist() == [4.0, 2.0]
    assert next_centre(torch.tensor([1.0, 1.0]), mean_scores(scores), momentum=0.75).tolist() == [1.75, 1.25]


def test_the_two_crops_of_each_volume_are_exchanged():
    assert other_crop(torch.tensor([[0.0], [1.0], [2.0], [3.0]])).flatten().tolist() == [1.0, 0.0, 3.0, 2.0]
