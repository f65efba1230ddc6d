"""The target is normalised twice; the loss is a smooth L1 over masked tokens and nothing else."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.fedata.distillation import distillation_target, masked_distillation_loss


def test_the_target_is_the_norm_of_the_mean_of_norms():
    hidden = [torch.randn(2, 5, 8) * 3 + 1, torch.randn(2, 5, 8)]

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    expected = norm((norm(hidden[0]) + norm(hidden[1])) / 2)
    torch.testing.assert_close(distillation_target(hidden), expected)


def test_the_target_does_not_depend_on_a_blocks_scale():
    hidden = [torch.randn(1, 4, 16), torch.randn(1, 4, 16)]
    scaled = [hidden[0] * 7, hidden[1]]
    torch.testing.assert_close(distillation_target(hidden), distillation_target(scaled), atol=1e-4, rtol=1e-4)


def test_no_gradient_flows_into_the_target():
    assert not distillation_target([torch.randn(1, 2, 4, requires_grad=True)]).requires_grad


@pytest.mark.parametrize(
    ("error", "beta", "loss"),
    [(0.0, 2.0, 0.0), (1.0, 2.0, 0.25), (2.0, 2.0, 1.0), (3.0, 2.0, 2.0), (1.0, 0.5, 0.75)],
)
def test_one_masked_token_by_hand(error, beta, loss):
    """0.5 e^2 / beta below beta, e - beta / 2 above it."""
    prediction, target = torch.zeros(1, 2, 3), torch.full((1, 2, 3), error)
    mask = torch.tensor([[True, False]])
    assert float(masked_distillation_loss(prediction, target, mask, beta=beta)) == pytest.approx(loss)


def test_unmasked_predictions_do_not_touch_the_loss():
    prediction, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    changed = prediction.clone()
    changed[~mask.flatten(1)] += 100.0
    one = masked_distillation_loss(prediction, target, mask, beta=2.0)
    assert torch.equal(one, masked_distillation_loss(changed, target, mask, beta=2.0))
    changed = prediction.clone()
    changed[mask.flatten(1)] += 1.0
    assert not torch.equal(one, masked_distillation_loss(changed, target, mask, beta=2.0))


def test_gradient_reaches_masked_predictions_only():
    prediction = torch.randn(1, 3, 2, requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    masked_distillation_loss(prediction, torch.randn(1, 3, 2), mask, beta=2.0).backward()
    assert (prediction.grad.abs().sum(-1) > 0).tolist() == [[True, False, True]]
