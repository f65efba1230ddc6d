"""The prediction of the target network, against the average itself."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.fclopt.target_prediction import beta, coefficients, follow_weight, narrowed, predict

Tensors = dict[str, torch.Tensor]


def run_average(target: Tensors, path: list[Tensors], momentum: float) -> Tensors:
    """xi <- m xi + (1 - m) theta over the steps of ``path``, in float64."""
    found = {name: tensor.double() for name, tensor in target.items()}
    for theta in path:
        found = {name: momentum * found[name] + (1.0 - momentum) * theta[name].double() for name in found}
    return found


def tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("b", (3, 2)), ("a", (5,)))}


def straight(before: Tensors, after: Tensors, steps: int) -> list[Tensors]:
    return [
        {
            name: before[name].double() + (after[name].double() - before[name].double()) * (step / steps)
            for name in before
        }
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize(("momentum", "steps"), [(0.99, 65), (0.996, 100), (0.9, 1), (0.5, 7), (0.0, 4)])
def test_a_straight_line_is_followed_exactly(momentum: float, steps: int) -> None:
    """Invariant 5: constant velocity is reproduced to 1e-6."""
    target, before, after = tensors(1), tensors(2), tensors(3)
    true = run_average(target, straight(before, after, steps), momentum)
    found = predict(target, before, after, formula="closed_form", momentum=momentum, steps=steps)
    for name in true:
        assert torch.allclose(torch.from_numpy(found[name]), true[name], rtol=0, atol=1e-12)


def test_the_mean_of_sites_on_straight_lines_of_their_own_is_followed_too() -> None:
    target, before, ends = tensors(1), tensors(2), [tensors(3), tensors(4)]
    weights = (0.3, 0.7)
    averages = [run_average(target, straight(before, end, 20), 0.97) for end in ends]
    mean = {name: sum(w * end[name].double() for w, end in zip(weights, ends, strict=True)) for name in before}
    found = predict(target, before, mean, formula="closed_form", momentum=0.97, steps=20)
    for name in before:
        true = sum(w * average[name] for w, average in zip(weights, averages, strict=True))
        assert torch.allclose(torch.from_numpy(found[name]), true, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("momentum", "steps", "expected"), [(0.99, 65, (0.520, 0.210, 0.269)), (0.996, 100, (0.670, 0.153, 0.178))]
)
def test_weights_are_those_of_the_specification(
    momentum: float, steps: int, expected: tuple[float, float, float]
) -> None:
    assert coefficients("closed_form", momentum, steps) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("formula", ["closed_form", "naive"])
def test_weights_sum_to_one(formula: str) -> None:
    assert sum(coefficients(formula, 0.97, 12)) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("formula", ["closed_form", "naive"])
def test_without_momentum_the_target_is_the_online_network(formula: str) -> None:
    target, before, after = tensors(1), tensors(2), tensors(3)
    found = narrowed(predict(target, before, after, formula=formula, momentum=0.0, steps=5), target)
    assert all(torch.equal(found[name], after[name]) for name in after)


def test_the_naive_formula_ignores_where_the_round_began() -> None:
    target, after = tensors(1), tensors(3)
    one, other = (
        predict(target, before, after, formula="naive", momentum=0.9, steps=5) for before in (tensors(2), tensors(4))
    )
    assert all((one[name] == other[name]).all() for name in one)
    closed = predict(target, tensors(2), after, formula="closed_form", momentum=0.9, steps=5)
    assert any((closed[name] != one[name]).any() for name in one)


def test_it_is_one_rounding_whatever_the_order_the_tensors_come_in() -> None:
    target, before, after = tensors(1), tensors(2), tensors(3)
    one = narrowed(predict(target, before, after, formula="closed_form", momentum=0.97, steps=9), target)
    turned = [dict(reversed(given.items())) for given in (target, before, after)]
    other = narrowed(predict(*turned, formula="closed_form", momentum=0.97, steps=9), target)
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == torch.float32 for name in one)


def test_what_is_left_is_a_product() -> None:
    assert follow_weight(0.5, 3) == 0.125
    assert beta(0.5, 1) == 0.5
