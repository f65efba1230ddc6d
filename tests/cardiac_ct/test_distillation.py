"""Hard answers, softened ones, and how sure a CNN was."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.cardiac_ct.distillation import distilled, softened
from fedmedseg.cardiac_ct.losses import task_loss


def test_agreement_costs_nothing_and_any_logits_of_the_same_probabilities_agree() -> None:
    logits = torch.randn(1, 3, 2, 2, 2)
    assert float(softened(logits, logits + 3.0, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(softened(logits, torch.log_softmax(logits, 1), 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_one_voxel_by_hand() -> None:
    """At T = 1: teacher (3/4, 1/4), student (1/2, 1/2)."""
    teacher = torch.log(torch.tensor([0.75, 0.25])).reshape(1, 2, 1, 1, 1)
    student = torch.zeros(1, 2, 1, 1, 1)
    expected = 0.75 * torch.log(torch.tensor(1.5)) + 0.25 * torch.log(torch.tensor(0.5))
    assert float(softened(student, teacher, 1.0)) == pytest.approx(float(expected), abs=1e-6)


def test_temperature_scales_the_gradient_back() -> None:
    """T^2 KL tends to a quarter of the squared difference of centred logits: the same size at any high T."""
    teacher, student = torch.randn(2, 1, 2, 4, 4, 4).unbind()
    hot, hotter = float(softened(student, teacher, 50.0)), float(softened(student, teacher, 100.0))
    assert hot == pytest.approx(hotter, rel=0.05)
    assert float(softened(student, teacher, 1.0)) != pytest.approx(hot, rel=0.001)


def test_a_soft_answer_takes_the_place_of_the_label_and_weights_count() -> None:
    logits = {task: torch.randn(1, 2, 3, 3, 3) for task in ("hps", "ms", "calc")}
    target, soft = torch.randint(2, (1, 3, 3, 3)), torch.log_softmax(torch.randn(1, 2, 3, 3, 3), 1)
    found = distilled(logits, {"ms": target, "calc": target}, {"calc": soft}, {"ms": 0.5}, temperature=2.0)
    assert set(found) == {"ms", "calc"}
    torch.testing.assert_close(found["ms"], 0.5 * task_loss(logits["ms"], target))
    torch.testing.assert_close(found["calc"], softened(logits["calc"], soft, 2.0))
