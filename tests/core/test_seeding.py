"""Random numbers are named by what is done with them."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from fedmedseg.core.seeding import derive_seed, generator, seed_everything


def test_a_seed_is_the_first_63_bits_of_a_digest_of_its_place() -> None:
    digest = hashlib.sha256(b"1\x1fsite-1\x1f3").digest()
    assert derive_seed(1, "site-1", 3) == int(digest[:8].hex(), 16) // 2 < 2**63


@pytest.mark.parametrize(
    "other",
    [(2, "site-1", 3), (1, "site-2", 3), (1, "site-1", 4), (1, "site-13"), (1, "site-1", 3, 0), (1, 3, "site-1")],
)
def test_another_place_has_another_seed(other: tuple) -> None:
    assert derive_seed(*other) != derive_seed(1, "site-1", 3)


def test_all_global_generators_are_seeded() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(2**62 + 5)
    first = draw()
    assert draw() != first
    seed_everything(2**62 + 5)
    assert draw() == first


def test_a_generator_of_its_own_leaves_the_global_ones_alone() -> None:
    np.random.seed(4)
    expected = np.random.rand()
    np.random.seed(4)
    one, two = generator(1, "crops"), generator(1, "crops")
    assert one.integers(2**60, size=3).tolist() == two.integers(2**60, size=3).tolist()
    assert generator(1, "masks").integers(2**60) != generator(1, "crops").integers(2**60)
    assert np.random.rand() == expected
