"""Grids in space: orientation, resampling and padding of volumes, and the way back to the file's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

SAME_SPACING = 0.01
"""Spacings that differ by less than this share count as equal: nothing is resampled for them."""
MOST_PADDING = 0.25
"""A volume may lack this share of the crop along an axis; it is padded then."""

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Widths = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Grid:
    """Voxel counts (X, Y, Z) and the 4x4 affine from voxel indices to mm (R, A, S)."""

    shape: Shape
    affine: np.ndarray

    @property
    def spacing(self) -> Spacing:
        """mm between neighbouring voxels along each axis."""
        return spacing_of(self.affine)


def spacing_of(affine: np.ndarray) -> Spacing:
    """Lengths in mm of the affine's three columns."""
    x, y, z = np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0)).tolist()
    return x, y, z


def slice_axis(spacing: Sequence[float]) -> int:
    """The through-plane axis of a stack of slices: the one with the largest spacing, the third on a tie."""
    largest = max(spacing)
    return 2 if spacing[2] >= (1.0 - SAME_SPACING) * largest else int(np.argmax(spacing))


def axial(affine: np.ndarray) -> int:
    """Which axis of an array, 0 to 2, leads from the feet to the head: axial slices lie along it."""
    return int(np.flatnonzero(canonical_orientation(affine, 3)[:, 0] == 2)[0])


def canonical_orientation(affine: np.ndarray, spatial_dims: int) -> np.ndarray:
    """How to turn an array towards RAS, as a nibabel orientation: row i = (new place of axis i, 1 or -1).

    In 3D every axis goes where it points most. In 2D the through-plane axis goes last whatever it points at,
    because the planes of a short-axis stack are oblique and must never be mixed with it.
    """
    from nibabel.orientations import io_orientation

    if spatial_dims == 3:
        return io_orientation(affine).astype(np.int64)
    directions = affine[:3, :3] / np.array(spacing_of(affine))
    through = slice_axis(spacing_of(affine))
    first, second = (axis for axis in range(3) if axis != through)
    turns = [(one, other, s, t) for one, other in ((first, second), (second, first)) for s in (1, -1) for t in (1, -1)]
    one, other, sign, other_sign = max(
        turns,
        key=lambda turn: round(_in_plane_score(directions[:, turn[0]] * turn[2], directions[:, turn[1]] * turn[3]), 6),
    )
    orientation = np.zeros((3, 2), dtype=np.int64)
    orientation[one], orientation[other] = (0, sign), (1, other_sign)
    orientation[through] = (2, 1 if _through_plane_score(directions[:, through]) > 0 else -1)
    return orientation


def _through_plane_score(normal: np.ndarray) -> float:
    """Above 0 where slices follow each other in the direction that all volumes are brought to.

    Superior, right or anterior for planes along the body's axes. The heart's long axis runs from base to apex towards
    left, anterior and inferior, its parts differing from patient to patient: whichever is largest, a short-axis stack
    ends up with its first slice at the apex, as the anterior part weighs less than the other two.
    """
    return round(float(normal @ np.array([1.0, 0.25, 1.0])), 6)


def _in_plane_score(one: np.ndarray, other: np.ndarray) -> float:
    """How well two in-plane directions (R, A, S) suit as first and second axis of a slice.

    The first should point right, the second anterior or superior: R, A in axial slices and R, S in coronal
    ones. The small weight decides for A, S in sagittal ones. The score changes smoothly with the tilt of the
    planes, so that short-axis stacks of different patients end up alike although their normals lie between
    the body's axes.
    """
    return float(one @ np.array([1.0, 0.25, 0.0]) + other @ np.array([0.0, 1.0, 1.0]))


def orient(array: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Permute and flip ``array`` (X, Y, Z); values are untouched."""
    from nibabel.orientations import apply_orientation

    return np.ascontiguousarray(apply_orientation(array, orientation))


def oriented_grid(grid: Grid, orientation: np.ndarray) -> Grid:
    """The grid of an array after ``orient``."""
    from nibabel.orientations import inv_ornt_aff

    shape = [0, 0, 0]
    for axis, place in enumerate(orientation[:, 0]):
        shape[int(place)] = grid.shape[axis]
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ inv_ornt_aff(orientation, grid.shape))


def undo_orientation(volume: torch.Tensor, orientation: np.ndarray) -> torch.Tensor:
    """Inverse of ``orient`` for a tensor (C, X, Y, Z)."""
    volume = volume.permute(0, *(1 + int(place) for place in orientation[:, 0]))
    flipped = [1 + axis for axis in range(3) if orientation[axis, 1] < 0]
    return volume.flip(flipped) if flipped else volume


def resampled_grid(grid: Grid, spacing: Sequence[float | None]) -> Grid:
    """The grid over the same box with the wanted ``spacing`` in mm per axis; None keeps an axis as it is.

    Both grids share their centre, so that rounding the number of voxels costs half a voxel at most at each end.
    """
    scale, offset, shape = np.ones(3), np.zeros(3), list(grid.shape)
    for axis, (have, want) in enumerate(zip(grid.spacing, spacing, strict=True)):
        if want is None or abs(want - have) <= SAME_SPACING * have:
            continue
        scale[axis] = want / have
        shape[axis] = max(1, round(grid.shape[axis] / scale[axis]))
        offset[axis] = (grid.shape[axis] - 1) / 2 - scale[axis] * (shape[axis] - 1) / 2
    step = np.eye(4)
    step[:3, :3] = np.diag(scale)
    step[:3, 3] = offset
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ step)


def target_grid(grid: Grid, spacing: Sequence[float | None], longest_edge: int | None) -> Grid:
    """The study's grid over the same box: ``resampled_grid``, and then, where ``longest_edge`` is given, as much finer
    or coarser in-plane as gives the longer in-plane side so many voxels. Both are one resampling."""
    target = resampled_grid(grid, spacing)
    if longest_edge is None:
        return target
    factor = max(target.shape[:2]) / longest_edge
    x, y, z = target.spacing
    return resampled_grid(grid, (x * factor, y * factor, z))


def same_grid(one: Grid, other: Grid) -> bool:
    """Equal shapes, and corners that lie within a tenth of a voxel of each other."""
    return one.shape == other.shape and corner_distance(one, other) <= 0.1 * min(one.spacing)


def corner_distance(one: Grid, other: Grid) -> float:
    """The largest distance in mm between the eight corners of two grids of equal shape."""
    corners = np.array(np.meshgrid(*[(0, edge - 1) for edge in one.shape])).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    difference = (one.affine - other.affine) @ homogeneous
    return float(np.sqrt((difference[:3] ** 2).sum(axis=0)).max())


def resample(volume: torch.Tensor, source: Grid, target: Grid, *, mode: str) -> torch.Tensor:
    """``volume`` (C, X, Y, Z) on ``source`` seen on ``target``; voxels outside take the border's value.

    ``mode`` is ``bilinear`` or ``nearest`` (MONAI SpatialResample). Same device; float32.
    """
    if source.shape == target.shape and np.array_equal(source.affine, target.affine):
        return volume.float()
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    wrapped = MetaTensor(volume.float(), affine=torch.as_tensor(source.affine, dtype=torch.float64))
    transform = SpatialResample(mode=mode, padding_mode="border", align_corners=False, dtype=np.float32)
    result = transform(
        wrapped, dst_affine=torch.as_tensor(target.affine, dtype=torch.float64), spatial_size=target.shape
    )
    return result.as_tensor() if isinstance(result, MetaTensor) else result


def padding(shape: Shape, crop: Sequence[int]) -> Widths | None:
    """Voxels to add before and after each axis so that ``crop`` fits; None where more than a quarter is missing.

    A crop of two numbers speaks of the first two axes only.
    """
    widths = [(0, 0), (0, 0), (0, 0)]
    for axis, edge in enumerate(crop):
        missing = edge - shape[axis]
        if missing > MOST_PADDING * edge:
            return None
        if missing > 0:
            widths[axis] = (missing // 2, missing - missing // 2)
    return widths[0], widths[1], widths[2]


def undo_padding(volume: torch.Tensor, widths: Widths) -> torch.Tensor:
    """Cut ``widths`` off a tensor (C, X, Y, Z)."""
    cuts = [slice(before, size - after) for (before, after), size in zip(widths, volume.shape[1:], strict=True)]
    return volume[:, cuts[0], cuts[1], cuts[2]]
