"""Smooth implicit surfaces in millimetres: grids, signed distances, deformations and random textures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Points = tuple[Array, Array, Array]
Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One drawn case on a right-anterior-superior grid centred at the world's origin.

    Attributes:
        image: Float array (X, Y, Z); relative units for MR, HU for CT.
        label: uint8 array (X, Y, Z).
        spacing: mm per axis.
        landmarks: Name to (x, y, z) in mm from the grid's centre.
        heart: uint8 array (X, Y, Z) of the heart's structures, in the families that have them.
    """

    image: Array
    label: NDArray[np.uint8]
    spacing: Point
    landmarks: dict[str, Point] = field(default_factory=dict)
    heart: NDArray[np.uint8] | None = None


class Canvas:
    """An image, its label and a map of structures, painted tissue by tissue; what comes later lies on top of all."""

    def __init__(self, *, points: Points, background: float, softness: float) -> None:
        self.points = points
        self.softness = softness
        self.image = np.full(points[0].shape, background, dtype=np.float32)
        self.label = np.zeros(points[0].shape, dtype=np.uint8)
        self.structures = np.zeros(points[0].shape, dtype=np.uint8)

    def add(
        self, distance: NDArray[np.floating], value: Array | float, *, label: int = 0, structure: int | None = 0
    ) -> None:
        """Paint the inside of a surface; 0 takes earlier labels or structures away there, structure None keeps them."""
        paint(self.image, cover(distance, self.softness), value)
        inside = distance <= 0
        self.label[inside] = label
        if structure is not None:
            self.structures[inside] = structure


def axis(count: int, step: float) -> Array:
    """Voxel centres of one axis in mm, symmetric about 0."""
    return ((np.arange(count) - (count - 1) / 2) * step).astype(np.float32)


def grid(size: tuple[int, int, int], spacing: Point, *, subslices: int = 1) -> Points:
    """Coordinates in mm, each (X, Y, Z * subslices); ``subslices`` samples evenly inside the slice thickness."""
    x, y = axis(size[0], spacing[0]), axis(size[1], spacing[1])
    z = axis(size[2] * subslices, spacing[2] / subslices)
    mesh = np.meshgrid(x, y, z, indexing="ij")
    return mesh[0], mesh[1], mesh[2]


def through_plane_mean(volume: Array, subslices: int) -> Array:
    """Average the samples inside each slice: (X, Y, Z * subslices) to (X, Y, Z), the partial volume of thick slices."""
    x, y, z = volume.shape
    return volume.reshape(x, y, z // subslices, subslices).mean(axis=3)


def warp(points: Points, rng: np.random.Generator, *, amplitude: float, wavelength: float, waves: int = 4) -> Points:
    """Bend space with a few sine waves of random direction.

    Args:
        amplitude: Standard deviation of the displacement per axis, mm.
        wavelength: Typical wavelength, mm; kept long against the amplitude, the map stays one to one.
    """
    moved = [np.array(p) for p in points]
    for _ in range(waves):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (np.linalg.norm(direction) * wavelength * rng.uniform(0.7, 1.5))
        phase = rng.uniform(0, 2 * np.pi)
        wave = np.sin(direction[0] * points[0] + direction[1] * points[1] + direction[2] * points[2] + phase)
        shift = rng.normal(size=3) * amplitude * np.sqrt(2 / waves)
        for moving, amount in zip(moved, shift, strict=True):
            moving += (amount * wave).astype(np.float32)
    return moved[0], moved[1], moved[2]


def rotate(x: Array, y: Array, degrees: float) -> tuple[Array, Array]:
    """Coordinates of in-plane points in a frame turned by ``degrees``."""
    angle = np.deg2rad(degrees)
    return (
        (np.cos(angle) * x + np.sin(angle) * y).astype(np.float32),
        (-np.sin(angle) * x + np.cos(angle) * y).astype(np.float32),
    )


def ellipsoid(points: Points, centre: Point, radii: Point, *, turn: float = 0.0) -> Array:
    """Approximate signed distance in mm to an ellipsoid, negative inside; first-order exact at the surface.

    Args:
        turn: In-plane rotation in degrees.
    """
    x, y = rotate(points[0] - centre[0], points[1] - centre[1], turn)
    z = points[2] - centre[2]
    a, b, c = radii
    k = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    gradient = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
    return (k * (k - 1) / np.maximum(gradient, 1e-6)).astype(np.float32)


def tube(points: Points, path: NDArray[np.floating], radii: NDArray[np.floating] | float) -> Array:
    """Signed distance in mm to a tube along a polyline.

    Args:
        path: (N, 3) in mm, N >= 2.
        radii: One radius or one per point of the path, mm; linear between the points.
    """
    path = np.asarray(path, dtype=np.float32)
    widths = np.broadcast_to(np.asarray(radii, dtype=np.float32), (len(path),))
    best = np.full(points[0].shape, np.inf, dtype=np.float32)
    for start, stop, first, last in zip(path[:-1], path[1:], widths[:-1], widths[1:], strict=True):
        along = stop - start
        offset = [p - s for p, s in zip(points, start, strict=True)]
        share = sum(o * a for o, a in zip(offset, along, strict=True)) / max(float(along @ along), 1e-6)
        share = np.clip(share, 0, 1)
        distance = np.sqrt(sum((o - share * a) ** 2 for o, a in zip(offset, along, strict=True)))
        np.minimum(best, distance - (first + share * (last - first)), out=best)
    return best


def cover(distance: NDArray[np.floating], softness: float) -> Array:
    """Share of a voxel inside a surface: 1 inside, 0 outside, linear over ``2 * softness`` mm at the surface."""
    return np.clip(0.5 - distance / (2 * softness), 0, 1).astype(np.float32)


def paint(image: Array, share: Array, value: Array | float) -> None:
    """Lay a tissue over the image in place; where it covers a voxel in part, so does its value."""
    image += share * (value - image)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int, int], coarse: tuple[int, int, int]) -> Array:
    """Random texture with zero mean and unit spread: a coarse random grid, interpolated to ``size``."""
    from scipy.ndimage import zoom

    knots = tuple(min(c, s) for c, s in zip(coarse, size, strict=True))
    values = rng.normal(size=knots).astype(np.float32)
    fine = zoom(values, [s / k for s, k in zip(size, knots, strict=True)], order=1, mode="nearest", grid_mode=True)
    fine = fine - fine.mean()
    return (fine / max(float(fine.std()), 1e-6)).astype(np.float32)
