"""Norm, bound and noise: numbers by hand, and noise judged as noise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

from fedmedseg.privacy import clipping
from fedmedseg.privacy.clipping import bounded, clipping_factor, l2_norm, secure_normal


def ones(count: int) -> np.ndarray:
    return np.ones(count)


def test_the_norm_is_over_all_tensors_together() -> None:
    assert l2_norm({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[2.0], [4.0]])}) == pytest.approx(5.0)
    assert l2_norm({}) == 0.0


def test_the_norm_of_large_and_of_half_precision_numbers_does_not_overflow() -> None:
    assert l2_norm({"a": torch.full((4,), 1e38)}) == pytest.approx(2e38, rel=1e-6)
    assert l2_norm({"a": torch.full((4,), 6e4, dtype=torch.float16)}) == pytest.approx(12e4, rel=1e-3)


def test_an_update_inside_the_bound_is_the_same_bytes() -> None:
    tensors = {"a": torch.tensor([3.0, 4.0])}
    assert clipping_factor(5.0, 5.0) == 1.0
    assert bounded(tensors, factor=1.0)["a"] is tensors["a"]


def test_an_update_outside_comes_to_the_bound_and_keeps_its_direction() -> None:
    tensors = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    result = bounded(tensors, factor=clipping_factor(l2_norm(tensors), 1.0))
    assert [float(result[name]) for name in "ab"] == pytest.approx([0.6, 0.8], rel=1e-6)
    assert l2_norm(result) <= 1.0 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_comes_on_top_in_the_tensors_own_type_and_shape(dtype: torch.dtype) -> None:
    tensors = {"a": torch.full((2, 3), 8.0, dtype=dtype)}
    result = bounded(tensors, factor=0.25, deviation=0.5, normal=ones)
    assert result["a"].dtype == dtype
    assert torch.equal(result["a"], torch.full((2, 3), 2.5, dtype=dtype))
    assert torch.equal(tensors["a"], torch.full((2, 3), 8.0, dtype=dtype)), "the site keeps its own"


def test_the_noise_has_the_deviation_asked_for() -> None:
    result = bounded({"a": torch.zeros(200_000)}, factor=1.0, deviation=0.25)["a"].numpy()
    assert stats.kstest(result / 0.25, "norm").pvalue > 1e-6
    # five standard errors of a variance
    assert np.var(result) == pytest.approx(0.0625, rel=5 * math.sqrt(2 / 200_000))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_number_of_numbers(count: int) -> None:
    assert secure_normal(count).shape == (count,)


def test_noise_in_several_pieces_is_one_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping, "CHUNK", 1000)
    numbers = secure_normal(50_001)
    assert stats.kstest(numbers, "norm").pvalue > 1e-6
    assert np.unique(numbers).size == numbers.size, "no piece is a copy of another, and none was left out"
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_the_largest_and_smallest_uniform_numbers_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr(clipping.os, "urandom", lambda size, byte=byte: byte * size)
        assert np.isfinite(secure_normal(4)).all()


def test_who_knows_every_seed_still_does_not_know_the_noise() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        drawn.append(secure_normal(8))
    assert not np.array_equal(*drawn)
    before = torch.random.get_rng_state()
    secure_normal(8)
    assert torch.equal(before, torch.random.get_rng_state()), "and the study's own numbers do not move"
