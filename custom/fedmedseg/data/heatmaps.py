"""Points as Gaussian heat maps, one channel each: the usual alternative to spheres, in which points never overlap.

Payer et al., "Integrating spatial configuration into heatmap regression based CNNs for landmark localization", Medical
Image Analysis 2019 (https://doi.org/10.1016/j.media.2019.03.007). All places are continuous voxel indices of one grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmedseg.data.spheres import Decoded

SIGMA = 2.0
"""Voxels."""
THRESHOLD = 0.3
"""A map that stays below it everywhere shows no point."""


def draw_heatmaps(points: ArrayLike, shape: Sequence[int], *, sigma: float = SIGMA) -> NDArray[np.float32]:
    """Maps (K, X, Y, Z) with exp(-d^2 / 2 sigma^2) at distance d of point i; a row of nan leaves its map 0."""
    rows = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    maps = np.zeros((len(rows), *shape), dtype=np.float32)
    for place, point in enumerate(rows):
        if np.isnan(point).any():
            continue
        # the exponential of a sum is a product of one factor per axis
        x, y, z = (np.exp(-((np.arange(edge) - c) ** 2) / (2 * sigma**2)) for edge, c in zip(shape, point, strict=True))
        maps[place] = x[:, None, None] * y[None, :, None] * z[None, None, :]
    return maps


def decode_heatmaps(maps: ArrayLike, *, threshold: float = THRESHOLD) -> Decoded:
    """The point of each map (K, X, Y, Z), missing where the map's highest value lies below ``threshold``.

    It is the mean place, weighted by value, of the voxels around the peak that reach half its height; the peak is the
    confidence, at most 1.
    """
    values = np.asarray(maps, dtype=np.float64)
    points, confidence, voxels = [], [], []
    for one in values:
        part = _around_the_peak(one) if float(one.max()) >= threshold else np.zeros(one.shape, dtype=bool)
        places = np.argwhere(part)
        points.append(np.average(places, axis=0, weights=one[part]) if len(places) else np.full(3, np.nan))
        confidence.append(min(1.0, float(one.max())) if len(places) else 0.0)
        voxels.append(len(places))
    return Decoded(np.array(points).reshape(-1, 3), np.array(confidence), np.array(voxels, dtype=np.int64))


def _around_the_peak(one: NDArray[np.float64]) -> NDArray[np.bool_]:
    from scipy.ndimage import generate_binary_structure, label

    parts, _ = label(one >= 0.5 * one.max(), structure=generate_binary_structure(3, 3))
    return np.asarray(parts == parts[np.unravel_index(int(one.argmax()), one.shape)])
