"""The target is normalised twice; the loss is a smooth L1 over masked tokens and nothing else."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.fedata.distillation import distillation_target, masked_distillation_loss
from fedmedseg.fedata.masking import places


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
    prediction, target = torch.zeros(1, 1, 3), torch.stack([torch.full((3,), error), torch.full((3,), 99.0)])[None]
    hidden = torch.tensor([[0]])
    assert float(masked_distillation_loss(prediction, target, hidden, beta=beta)) == pytest.approx(loss)


def test_targets_of_visible_tokens_do_not_touch_the_loss():
    prediction, target = torch.randn(2, 2, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    hidden = places(mask).hidden
    one = masked_distillation_loss(prediction, target, hidden, beta=2.0)
    changed = target.clone()
    changed[~mask.flatten(1)] += 100.0
    assert torch.equal(one, masked_distillation_loss(prediction, changed, hidden, beta=2.0))
    changed = target.clone()
    changed[mask.flatten(1)] += 1.0
    assert not torch.equal(one, masked_distillation_loss(prediction, changed, hidden, beta=2.0))


def test_predictions_meet_the_targets_of_their_own_places():
    target = torch.arange(8.0).reshape(1, 4, 2)
    hidden = torch.tensor([[1, 3]])
    assert float(masked_distillation_loss(target[:, [1, 3]], target, hidden, beta=2.0)) == 0.0
    assert float(masked_distillation_loss(target[:, [3, 1]], target, hidden, beta=2.0)) > 0.0
