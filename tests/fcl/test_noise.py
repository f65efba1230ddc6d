"""Noise of the length its name says, from the operating system, and lengths after it."""

import pytest
import torch

from fedmedseg.fcl.noise import noisy

UNIT = torch.nn.functional.normalize(torch.randn(400, 50, generator=torch.Generator().manual_seed(1)), dim=1)


def test_no_sigma_leaves_features_as_they_are() -> None:
    assert noisy(UNIT, sigma=0.0, renormalise=True) is UNIT


def test_the_noise_has_the_deviation_that_sigma_says() -> None:
    changed = noisy(UNIT, sigma=0.1, renormalise=False) - UNIT
    assert float(changed.std()) == pytest.approx(0.1, rel=0.05)
    assert changed.dtype == torch.float32


def test_renormalising_brings_every_row_back_to_length_one() -> None:
    kept, longer = noisy(UNIT, sigma=0.1, renormalise=True), noisy(UNIT, sigma=0.1, renormalise=False)
    torch.testing.assert_close(kept.norm(dim=1), torch.ones(400))
    # sqrt(1 + 50 x 0.01)
    assert float(longer.norm(dim=1).mean()) == pytest.approx(1.22, abs=0.03)


def test_longer_features_are_cut_before_the_noise() -> None:
    assert float(noisy(10 * UNIT, sigma=1e-6, renormalise=False).norm(dim=1).max()) == pytest.approx(1.0, abs=1e-4)


def test_the_studys_seed_does_not_repeat_it() -> None:
    torch.manual_seed(1)
    first = noisy(UNIT, sigma=0.1, renormalise=True)
    torch.manual_seed(1)
    assert not torch.equal(first, noisy(UNIT, sigma=0.1, renormalise=True))
