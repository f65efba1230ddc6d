"""Random flips, quarter turns and small intensity changes of labelled crops; deformations; or small turns and scales.

Probabilities and ranges follow the fine-tuning example of Swin UNETR for multi-organ segmentation in MONAI's
research contributions (SwinUNETR/BTCV: flips 0.2 per axis, quarter turns 0.2, intensity scale and shift 0.1
each with range 0.1). Deviation: intensities of CT stay as they are, because Hounsfield units are calibrated:
callers pass the study's modality.

``deform`` follows the published code of FedCRLD (https://github.com/JerryQseu/FedCRLD, data_utilize2.py): a mirror
image at random, then one in-plane transform shared by all slices: elastic (a random field smoothed by a Gaussian of
sigma 30 to 50 voxels, times alpha 0 to 1500), a turn of up to half a circle, a scale of 0.75 to 1.25.

``tilt`` follows the published notebooks of SegViz (https://github.com/UM2ii/SegViz), which change every crop: intensity
times 0.9 to 1.1, then plus up to 0.1 (of the window that is mapped to 0..1), a turn about z of up to 12 degrees and a
scale of 0.9 to 1.1 per axis. Reconstruction: what lies outside the crop is its mirror image, MONAI's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, overload

import numpy as np
import torch

INTENSITY_RANGE = 0.1
TILT = np.pi / 15
"""Largest turn of ``tilt``, radians."""


@dataclass(frozen=True)
class Elastic:
    """Ranges of the elastic field's strength and smoothness (voxels), of the scale, and the largest turn (radians)."""

    alpha: tuple[float, float] = (0.0, 1500.0)
    sigma: tuple[float, float] = (30.0, 50.0)
    scale: tuple[float, float] = (0.75, 1.25)
    turn: float = np.pi


PUBLISHED = Elastic()
"""Of FedCRLD's labelled crops."""
VIEWS = Elastic(alpha=(100.0, 350.0), sigma=(14.0, 17.0), scale=(0.7, 1.3))
"""Of the views that contrastive pretraining compares, as in positional contrastive learning's public code
(https://github.com/dewenzeng/positional_cl)."""


@overload
def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    rng: np.random.Generator,
    *,
    modality: Literal["mr", "ct"] = ...,
    flip: float = ...,
    turn: float = ...,
    intensity: float = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def augment(
    image: torch.Tensor,
    label: None,
    rng: np.random.Generator,
    *,
    modality: Literal["mr", "ct"] = ...,
    flip: float = ...,
    turn: float = ...,
    intensity: float = ...,
) -> tuple[torch.Tensor, None]: ...


def augment(
    image: torch.Tensor,
    label: torch.Tensor | None,
    rng: np.random.Generator,
    *,
    modality: Literal["mr", "ct"] = "mr",
    flip: float = 0.2,
    turn: float = 0.2,
    intensity: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``image`` and ``label`` (1, X, Y) or (1, X, Y, Z), changed alike; contiguous copies.

    Quarter turns lie in the plane of the first two axes and need a square crop there. ``flip``, ``turn``
    and ``intensity`` are probabilities. The same number of random draws is made whatever they say.
    """
    axes = [axis + 1 for axis in range(image.ndim - 1) if rng.random() < flip]
    turns = int(rng.integers(1, 4)) if rng.random() < turn else 0
    if image.shape[1] != image.shape[2]:
        turns = 0
    changed_label = None if label is None else torch.rot90(label.flip(axes), turns, (1, 2)).clone().contiguous()
    changed = torch.rot90(image.flip(axes), turns, (1, 2)).clone().contiguous()
    scaled, shifted = rng.random() < intensity, rng.random() < intensity
    factor, offset = rng.uniform(-INTENSITY_RANGE, INTENSITY_RANGE, size=2)
    if modality == "mr":
        changed = changed * (1.0 + float(factor)) if scaled else changed
        changed = changed + float(offset) if shifted else changed
    return changed, changed_label


@overload
def deform(
    image: torch.Tensor, label: torch.Tensor, rng: np.random.Generator, *, ranges: Elastic = ...
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def deform(
    image: torch.Tensor, label: None, rng: np.random.Generator, *, ranges: Elastic = ...
) -> tuple[torch.Tensor, None]: ...


def deform(
    image: torch.Tensor, label: torch.Tensor | None, rng: np.random.Generator, *, ranges: Elastic = PUBLISHED
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``image`` and ``label`` (1, X, Y) or (1, X, Y, Z), moved alike: a mirror image, then a deformation in-plane.

    Values between voxels are linear in the image and nearest in the label; from outside comes the image's darkest
    value and background. The same number of draws is made for equal shapes.
    """
    from torch.nn.functional import grid_sample

    axes = [axis + 1 for axis in range(image.ndim - 1) if rng.random() < 0.5]
    shape = (int(image.shape[1]), int(image.shape[2]))
    alpha, sigma = rng.uniform(*ranges.alpha), rng.uniform(*ranges.sigma)
    angle, scale = rng.uniform(-ranges.turn, ranges.turn), rng.uniform(*ranges.scale)
    field = [alpha * smoothed(rng.uniform(-1.0, 1.0, size=shape), sigma) for _ in range(2)]
    x, y = np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in shape), indexing="ij")
    x, y = x + field[0], y + field[1]
    # where each voxel of the result comes from, in voxels from the centre
    source = (
        scale * (np.cos(angle) * x - np.sin(angle) * y),
        scale * (np.sin(angle) * x + np.cos(angle) * y),
    )
    # grid_sample counts in halves of the extent, the last axis first
    places = np.stack([2 * source[1] / max(1, shape[1] - 1), 2 * source[0] / max(1, shape[0] - 1)], axis=-1)
    grid = torch.from_numpy(places.astype(np.float32))[None]

    def sampled(volume: torch.Tensor, mode: str, outside: float) -> torch.Tensor:
        # slices as channels: all of them move alike
        flat = volume.flip(axes)[0].reshape(*shape, -1).permute(2, 0, 1)[None].float() - outside
        moved = grid_sample(flat, grid, mode=mode, padding_mode="zeros", align_corners=True) + outside
        return moved[0].permute(1, 2, 0).reshape(volume.shape).contiguous()

    darkest = float(image.min())
    moved_label = None if label is None else sampled(label, "nearest", 0.0).round().to(label.dtype)
    return sampled(image, "bilinear", darkest), moved_label


def smoothed(field: np.ndarray, sigma: float) -> np.ndarray:
    """A field (X, Y) under a Gaussian of ``sigma`` voxels, with zeros around it and the kernel cut at 4 sigma.

    As ``scipy.ndimage.gaussian_filter(mode="constant")`` does it, by two matrix products: where the kernel is wider
    than the field, as here, they take a small part of its time.
    """
    first, second = (_kernel(edge, sigma) for edge in field.shape)
    return np.asarray(first @ field @ second)


@lru_cache(maxsize=2)  # a deformation asks for one kernel four times, a square crop's
def _kernel(edge: int, sigma: float) -> np.ndarray:
    """What each of ``edge`` voxels gets of every other, (edge, edge)."""
    radius = int(4.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    distance = np.abs(np.subtract.outer(np.arange(edge), np.arange(edge)))
    return np.where(distance <= radius, np.exp(-0.5 * (distance / sigma) ** 2), 0.0) / weights.sum()


def tilt(image: torch.Tensor, label: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``image`` and ``label`` (1, X, Y) or (1, X, Y, Z), turned and scaled alike; intensities of the image changed.

    Values between voxels are linear in the image and nearest in the label.
    """
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import Affine

    factor, offset = rng.uniform(-INTENSITY_RANGE, INTENSITY_RANGE, size=2)
    angle, scales = rng.uniform(-TILT, TILT), 1.0 + rng.uniform(-0.1, 0.1, size=image.ndim - 1)
    flat = image.ndim == 3
    move = Affine(
        rotate_params=float(angle) if flat else (0.0, 0.0, float(angle)),
        scale_params=[float(scale) for scale in scales],
        padding_mode="reflection",
        image_only=True,
    )

    def moved(volume: torch.Tensor, mode: str) -> torch.Tensor:
        # image_only: one tensor comes back, of MONAI's own kind
        return cast(MetaTensor, move(volume.float(), mode=mode)).as_tensor().contiguous()

    changed = image * (1.0 + float(factor)) + float(offset)
    return moved(changed, "bilinear"), moved(label, "nearest").round().to(label.dtype)


def augmented(
    image: torch.Tensor, label: torch.Tensor, rng: np.random.Generator, *, kind: str, modality: Literal["mr", "ct"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A labelled crop changed in the way that ``segmentation.augmentation`` names."""
    if kind == "elastic":
        return deform(image, label, rng)
    if kind == "affine":
        return tilt(image, label, rng)
    return augment(image, label, rng, modality=modality)
