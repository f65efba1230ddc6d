"""The norm of a whole update, a bound on it, and Gaussian noise from the operating system's own secure source."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping

import numpy as np
import torch

CHUNK = 1 << 19
"""Pairs of normal numbers made at once: 16 MiB of working memory."""
_SLACK = 1e-9
"""The norm is summed in float64, with less than this relative error."""


def l2_norm(tensors: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of all tensors together, as one long vector; summed in float64 over sorted names."""
    total = 0.0
    for name in sorted(tensors):
        total += float(torch.linalg.vector_norm(tensors[name].double())) ** 2
    return math.sqrt(total)


def clipping_factor(norm: float, limit: float) -> float:
    """What an update of this norm is multiplied with: ``min(1, limit / norm)`` (Abadi et al. 2016, algorithm 1)."""
    return 1.0 if norm <= limit else limit / norm * (1.0 - _SLACK)


def bounded(
    tensors: Mapping[str, torch.Tensor],
    *,
    factor: float,
    deviation: float = 0.0,
    normal: Callable[[int], np.ndarray] | None = None,
) -> dict[str, torch.Tensor]:
    """``factor`` times every tensor, plus noise of standard deviation ``deviation``; types and shapes stay.

    Computed in float64 and rounded to the tensor's own type at the end, so that rounding can loosen neither the
    bound nor the noise that was added under it: what follows the noise is post-processing. ``normal`` makes the
    noise, n standard normal numbers at a time; unset: ``secure_normal``.
    """
    draw = secure_normal if normal is None else normal
    result = {}
    for name, tensor in tensors.items():
        if factor == 1.0 and not deviation:
            result[name] = tensor
            continue
        wide = tensor.detach().cpu().double() * factor
        if deviation:
            wide += deviation * torch.from_numpy(draw(tensor.numel())).reshape(wide.shape)
        result[name] = wide.to(tensor.dtype).contiguous()
    return result


def secure_normal(count: int) -> np.ndarray:
    """``count`` standard normal numbers (float64) out of ``os.urandom``, by the method of Box and Muller (1958).

    Neither the study's seed nor any generator with a state is involved: whoever knows the seed, as the server does,
    could draw the same noise and take it off again, and the state of an ordinary generator can be computed from
    enough of its output. Uniform numbers have 64 bits, so no number is larger than 9.5; a true normal number is with
    probability 2e-21.
    """
    result = np.empty(count + count % 2)
    for start in range(0, result.size, 2 * CHUNK):
        pairs = min(CHUNK, (result.size - start) // 2)
        raw = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).astype(np.float64)
        radius = np.sqrt(-2.0 * np.log((raw[:pairs] + 0.5) * 2.0**-64))
        angle = raw[pairs:] * (2.0 * math.pi * 2.0**-64)
        result[start : start + pairs] = radius * np.cos(angle)
        result[start + pairs : start + 2 * pairs] = radius * np.sin(angle)
    return result[:count]
