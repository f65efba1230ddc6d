"""The watch over features: their spread is 1 on an even sphere and 0 in one place, and low ones are told."""

import logging

import pytest
import torch

from fedmedseg.segmentation.slice_pretraining import CollapseSection, feature_spread, watched


def test_features_that_lie_evenly_have_a_spread_of_one() -> None:
    drawn = torch.nn.functional.normalize(torch.randn(20000, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    assert feature_spread(drawn) == pytest.approx(1.0, abs=0.01)


def test_the_corners_of_a_square_have_a_spread_of_one() -> None:
    assert feature_spread(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])) == pytest.approx(1.0)


def test_features_in_one_place_have_none() -> None:
    assert feature_spread(torch.tensor([[0.6, 0.8]]).repeat(5, 1)) == pytest.approx(0.0, abs=1e-7)
    assert feature_spread(torch.tensor([[0.6, 0.8]])) == 0.0


def test_the_length_of_features_does_not_count() -> None:
    drawn = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    lengths = torch.rand(50, 1, generator=torch.Generator().manual_seed(3)) + 0.1
    assert feature_spread(drawn * lengths) == pytest.approx(feature_spread(drawn), abs=1e-6)
    assert feature_spread(torch.ones(8, 16) * lengths[:8]) == pytest.approx(0.0, abs=1e-6)


def test_a_spread_below_the_alarm_is_told_and_one_at_it_is_not(caplog: pytest.LogCaptureFixture) -> None:
    section = CollapseSection(alarm=0.4)
    with caplog.at_level(logging.WARNING):
        assert watched(0.4, section) == {"feature_std": 0.4, "collapse_alarm": 0.0}
        assert not caplog.text
        assert watched(0.39, section) == {"feature_std": 0.39, "collapse_alarm": 1.0}
    assert "features have collapsed: their spread is 0.390, below 0.4" in caplog.text
