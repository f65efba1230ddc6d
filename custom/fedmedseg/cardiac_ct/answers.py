"""From a network's probabilities to what is asked of it: points in voxels, or a mask; with how sure it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedmedseg.data.heatmaps import decode_heatmaps, draw_heatmaps
from fedmedseg.data.spheres import decode_confident, draw_spheres
from fedmedseg.data.tasks import TASKS

LEAST_LOG = -15.0
"""Log-probability below which a teacher's softened answer is not told apart; float16 keeps it."""


@dataclass(frozen=True)
class Found:
    """A network's answer to one task, on the prepared grid."""

    points: np.ndarray | None
    """(K, 3) continuous voxels, a row of nan where a point is missing; None of a task that marks voxels."""
    mask: np.ndarray | None
    """uint8 (X, Y, Z): classes of a task that marks voxels; None of points."""
    confidence: float
    """0..1: mean probability of what was found (of points: over all of them, 0 where one is missing)."""


def found_in(probabilities: torch.Tensor, task: str, landmarks: str) -> Found:
    """Decode probabilities (C, X, Y, Z) of one task."""
    if TASKS[task].kind == "points":
        decoded = decode_heatmaps(probabilities[1:]) if landmarks == "heatmaps" else decode_confident(probabilities)
        return Found(points=decoded.points, mask=None, confidence=float(np.mean(decoded.confidence)))
    best, chosen = probabilities.max(dim=0)
    marked = chosen > 0
    sure = best[marked].mean() if bool(marked.any()) else 1.0 - probabilities[1:].sum(dim=0).max()
    return Found(points=None, mask=chosen.to(torch.uint8).cpu().numpy(), confidence=float(sure))


def label_of(found: Found, shape: tuple[int, int, int], radius: float) -> np.ndarray:
    """The label (X, Y, Z) uint8 that a network would be trained on to answer so."""
    if found.points is not None:
        return draw_spheres(found.points, shape, radius=radius)
    assert found.mask is not None
    return found.mask


def maps_of(points: np.ndarray, shape: tuple[int, int, int], sigma: float) -> np.ndarray:
    """Gaussian heat maps (K, X, Y, Z) float32 of points in voxels."""
    return draw_heatmaps(points, shape, sigma=sigma)


def log_probabilities(probabilities: torch.Tensor) -> torch.Tensor:
    """float16 log-probabilities, at least ``LEAST_LOG``: what soft distillation keeps of a teacher."""
    return torch.log(probabilities.clamp_min(float(np.exp(LEAST_LOG)))).to(torch.float16)
