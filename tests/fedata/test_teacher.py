"""The teacher is an exponential moving average whose momentum runs once over all rounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmedseg.fedata.monitor import collapsed, token_spread
from fedmedseg.fedata.teacher import from_wire, make_teacher, momentum, relative_gap, to_wire, update_teacher


def test_the_average_follows_its_closed_form():
    """phi_n = m^n phi_0 + (1 - m) sum_k m^(n-1-k) s_k."""
    m, start, students = 0.9, 2.0, [1.0, -3.0, 5.0, 0.5]
    teacher = {"w": torch.tensor([start], dtype=torch.float64)}
    for value in students:
        update_teacher(teacher, {"w": torch.tensor([value], dtype=torch.float64), "other": torch.zeros(1)}, m)
    n = len(students)
    expected = m**n * start + (1 - m) * sum(m ** (n - 1 - k) * s for k, s in enumerate(students))
    assert float(teacher["w"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.996), (50, 0.998), (100, 1.0)])
def test_momentum_is_half_a_cosine_over_all_steps(step, expected):
    assert momentum(step, 101, start=0.996, end=1.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.2, 0.2 + 0.8 * (1 - 0.5**0.5) / 2, 0.6, 1.0]),
        ("linear", [0.2, 0.4, 0.6, 1.0]),
        ("constant", [0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_each_schedule_at_start_quarter_half_and_end(schedule, expected):
    values = [momentum(step, 101, start=0.2, end=1.0, schedule=schedule) for step in (0, 25, 50, 100)]
    assert values == pytest.approx(expected)
    assert momentum(0, 1, start=0.2, end=1.0, schedule=schedule) == pytest.approx(0.2)


def test_a_teacher_travels_under_names_of_its_own_and_as_a_copy():
    teacher = {"vit.w": torch.tensor([1.0])}
    wire = to_wire(teacher)
    assert list(wire) == ["teacher.vit.w"]
    teacher["vit.w"].add_(1.0)
    assert wire["teacher.vit.w"].tolist() == [1.0]
    student, averaged = from_wire({"vit.w": torch.tensor([3.0]), **wire})
    assert (student["vit.w"].tolist(), averaged["vit.w"].tolist()) == ([3.0], [1.0])
    assert (list(student), list(averaged)) == (["vit.w"], ["vit.w"])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_momentum_never_falls(schedule):
    values = [momentum(step, 400, start=0.996, end=1.0, schedule=schedule) for step in range(400)]
    assert values == sorted(values)
    assert momentum(0, 1, start=0.996, end=1.0) == 0.996


def test_a_teacher_has_no_gradients_and_stays_in_evaluation_mode():
    encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    teacher = make_teacher(encoder)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert encoder.training
    with torch.no_grad():
        encoder[0].weight.add_(1.0)
    assert not torch.equal(teacher[0].weight, encoder[0].weight)


def test_the_gap_is_relative_to_the_teacher():
    """|(3, 4) - 0| / |(0, 10)| = 0.5 where the student is (3, 14)."""
    teacher = {"a": torch.tensor([0.0]), "b": torch.tensor([10.0])}
    assert relative_gap(teacher, {"a": torch.tensor([3.0]), "b": torch.tensor([14.0])}) == pytest.approx(0.5)
    assert relative_gap(teacher, teacher) == 0.0


def test_the_spread_is_the_deviation_over_tokens_averaged_over_channels():
    """Channel 0 holds 0 and 2 (deviation sqrt 2), channel 1 is constant."""
    tokens = torch.tensor([[[0.0, 5.0]], [[2.0, 5.0]]])
    assert token_spread(tokens) == pytest.approx(2**0.5 / 2)
    assert token_spread(torch.ones(2, 3, 4)) == 0.0


def test_the_alarm_sounds_below_its_share_of_the_reference():
    assert collapsed(0.099, 1.0, alarm=0.1)
    assert not collapsed(0.101, 1.0, alarm=0.1)
