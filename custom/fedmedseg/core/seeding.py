"""Random numbers that depend on what is done, not on which process does it or when."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed from the study's seed and whatever names the place: site, stage, round, step."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(seed: int, *parts: object) -> np.random.Generator:
    """A NumPy generator of its own for one place."""
    return np.random.default_rng(derive_seed(seed, *parts))
