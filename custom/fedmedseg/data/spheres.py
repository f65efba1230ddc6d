"""Points as spheres of a label map, and back: what the cardiac CT study trains its landmark networks on.

Tölle et al., npj Digital Medicine 2025 (https://arxiv.org/abs/2407.07557), as in the authors' train_federated.py
(drawing) and eval_federated.ipynb (reading). All places are continuous voxel indices of one grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RADIUS = 4.0
"""Voxels; 4 mm on the study's grid of 1 mm. A sphere whose centre is a voxel's has 257."""


@dataclass(frozen=True)
class Decoded:
    """Points read from a network's output. Row i belongs to class i + 1, found or not."""

    points: NDArray[np.float64]
    """(K, 3) voxels; a row of nan where the class is not there."""
    confidence: NDArray[np.float64]
    """(K,) from 0 to 1; 0 where the class is not there."""
    voxels: NDArray[np.int64]
    """(K,) size of what the point was read from."""

    @property
    def found(self) -> NDArray[np.bool_]:
        """(K,) which points are there."""
        return ~np.isnan(self.points[:, 0])


def draw_spheres(points: ArrayLike, shape: Sequence[int], *, radius: float = RADIUS) -> NDArray[np.uint8]:
    """Label map (X, Y, Z): i + 1 at each voxel within ``radius`` of point i, 0 elsewhere.

    ``points`` is (K, 3); a row of nan draws nothing, and where two spheres overlap the later point has the voxel, as
    published. Points closer than two radii are therefore read further apart than they are: the ends of the phantoms'
    membranous septa (5 to 9 mm apart, radius 4 mm, voxels of 1 mm) by 0.11 mm on average and 0.58 mm at most.
    """
    label = np.zeros(tuple(shape), dtype=np.uint8)
    for number, point in enumerate(np.asarray(points, dtype=np.float64).reshape(-1, 3), start=1):
        if np.isnan(point).any():
            continue
        box = tuple(
            slice(max(0, math.ceil(c - radius)), min(edge, math.floor(c + radius) + 1))
            for c, edge in zip(point, label.shape, strict=True)
        )
        axes = (np.arange(part.start, max(part.start, part.stop)) - c for part, c in zip(box, point, strict=True))
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        label[box][x**2 + y**2 + z**2 <= radius**2] = number
    return label


def decode_spheres(label: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """Centre of mass (K, 3) of each class's largest component in a label map (X, Y, Z); nan for a class not there."""
    return np.array([_centre(_largest(label == number)) for number in range(1, count + 1)]).reshape(count, 3)


def decode_confident(probabilities: ArrayLike) -> Decoded:
    """As ``decode_spheres`` from class probabilities (1 + K, X, Y, Z), whose most likely class wins each voxel.

    Confidence is the mean probability of the class over the component that the point was read from.
    """
    shares = np.asarray(probabilities, dtype=np.float32)
    winner = shares.argmax(axis=0)
    parts = [_largest(winner == number) for number in range(1, len(shares))]
    return Decoded(
        points=np.array([_centre(part) for part in parts]).reshape(-1, 3),
        confidence=np.array(
            [float(shares[number][part].mean()) if part.any() else 0.0 for number, part in enumerate(parts, start=1)]
        ),
        voxels=np.array([int(part.sum()) for part in parts], dtype=np.int64),
    )


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component of a mask (X, Y, Z); voxels that share a corner are neighbours. Empty stays empty."""
    from scipy.ndimage import generate_binary_structure, label

    parts, count = label(mask, structure=generate_binary_structure(3, 3))
    if count < 2:
        return mask
    return np.asarray(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])))


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    places = np.argwhere(mask)
    return places.mean(axis=0) if len(places) else np.full(3, np.nan)
