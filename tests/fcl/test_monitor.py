"""The spread is 1 on an even sphere and 0 in one place."""

import pytest
import torch

from fedmedseg.fcl.monitor import feature_spread


def test_features_that_lie_evenly_have_a_spread_of_one() -> None:
    drawn = torch.nn.functional.normalize(torch.randn(20000, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    assert feature_spread(drawn) == pytest.approx(1.0, abs=0.01)


def test_the_corners_of_a_square_have_a_spread_of_one() -> None:
    assert feature_spread(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])) == pytest.approx(1.0)


def test_features_in_one_place_have_none() -> None:
    assert feature_spread(torch.tensor([[0.6, 0.8]]).repeat(5, 1)) == pytest.approx(0.0, abs=1e-7)
    assert feature_spread(torch.tensor([[0.6, 0.8]])) == 0.0
