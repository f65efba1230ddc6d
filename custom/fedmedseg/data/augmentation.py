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

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Change:
    """What ``augment`` draws: axes of an image to flip, quarter turns, and for MR by which share values grow and what
    is added to them; None: they stay.
    """

    axes: tuple[int, ...]
    turns: int
    factor: float | None
    offset: float | None


@dataclass(frozen=True)
class Deformation:
    """What ``deform`` draws: axes of an image to mirror, strength and smoothness of the elastic field (voxels), turn
    (radians), scale, and the field before it is smoothed, (2, X, Y).
    """

    axes: tuple[int, ...]
    alpha: float
    sigma: float
    angle: float
    scale: float
    rough: np.ndarray


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
    drawn = draw_change(image.shape[1:], rng, flip=flip, turn=turn, intensity=intensity)
    changed_label = None if label is None else _mirrored(label, drawn).clone().contiguous()
    return changed(image, drawn, modality), changed_label


def draw_change(
    shape: Sequence[int], rng: np.random.Generator, *, flip: float, turn: float, intensity: float
) -> Change:
    """The draws of ``augment`` for an image of ``shape`` (X, Y) or (X, Y, Z)."""
    axes = tuple(axis + 1 for axis in range(len(shape)) if rng.random() < flip)
    turns = int(rng.integers(1, 4)) if rng.random() < turn else 0
    scaled, shifted = rng.random() < intensity, rng.random() < intensity
    factor, offset = rng.uniform(-INTENSITY_RANGE, INTENSITY_RANGE, size=2)
    return Change(
        axes=axes,
        turns=turns if shape[0] == shape[1] else 0,
        factor=float(factor) if scaled else None,
        offset=float(offset) if shifted else None,
    )


def changed(image: torch.Tensor, drawn: Change, modality: Literal["mr", "ct"]) -> torch.Tensor:
    """A contiguous copy of ``image`` (1, X, Y) or (1, X, Y, Z) after ``drawn``; values of CT stay."""
    moved = _mirrored(image, drawn).clone().contiguous()
    if modality == "mr" and drawn.factor is not None:
        moved = moved * (1.0 + drawn.factor)
    if modality == "mr" and drawn.offset is not None:
        moved = moved + drawn.offset
    return moved


def _mirrored(volume: torch.Tensor, drawn: Change) -> torch.Tensor:
    return torch.rot90(volume.flip(drawn.axes), drawn.turns, (1, 2))


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
    drawn = draw_deformation(image.shape[1:], rng, ranges=ranges)
    grid = source(drawn)[None]
    moved_label = None
    if label is not None:
        moved_label = _sampled(label.flip(drawn.axes), grid, "nearest", 0.0).round().to(label.dtype)
    return _sampled(image.flip(drawn.axes), grid, "bilinear", float(image.min())), moved_label


def draw_deformation(shape: Sequence[int], rng: np.random.Generator, *, ranges: Elastic = PUBLISHED) -> Deformation:
    """The draws of ``deform`` for an image of ``shape`` (X, Y) or (X, Y, Z)."""
    axes = tuple(axis + 1 for axis in range(len(shape)) if rng.random() < 0.5)
    alpha, sigma = rng.uniform(*ranges.alpha), rng.uniform(*ranges.sigma)
    angle, scale = rng.uniform(-ranges.turn, ranges.turn), rng.uniform(*ranges.scale)
    rough = rng.uniform(-1.0, 1.0, size=(2, shape[0], shape[1]))
    return Deformation(axes=axes, alpha=alpha, sigma=sigma, angle=angle, scale=scale, rough=rough)


def source(drawn: Deformation) -> torch.Tensor:
    """Where each voxel of the result comes from, (X, Y, 2) float32 as ``grid_sample`` counts: in halves of the extent,
    the last axis first.
    """
    shape = drawn.rough.shape[1:]
    x, y = _centred(shape) + drawn.alpha * smoothed(drawn.rough, drawn.sigma)
    first = drawn.scale * (np.cos(drawn.angle) * x - np.sin(drawn.angle) * y)
    second = drawn.scale * (np.sin(drawn.angle) * x + np.cos(drawn.angle) * y)
    places = np.empty((*shape, 2), dtype=np.float32)
    places[..., 0], places[..., 1] = 2 * second / max(1, shape[1] - 1), 2 * first / max(1, shape[0] - 1)
    return torch.from_numpy(places)


def deformed(images: torch.Tensor, drawn: Sequence[Deformation]) -> torch.Tensor:
    """Images (N, 1, X, Y), each by a deformation of its own, as ``deform`` would one after the other, float32."""
    from torch.nn.functional import grid_sample

    darkest = images.amin(dim=(1, 2, 3), keepdim=True)
    flat = torch.stack([image.flip(one.axes) for image, one in zip(images, drawn, strict=True)]) - darkest
    grids = torch.stack([source(one) for one in drawn])
    return grid_sample(flat, grids, mode="bilinear", padding_mode="zeros", align_corners=True) + darkest


def _sampled(volume: torch.Tensor, grid: torch.Tensor, mode: str, outside: float) -> torch.Tensor:
    """``volume`` (1, X, Y) or (1, X, Y, Z) at the places of ``grid`` (1, X, Y, 2), all slices alike."""
    from torch.nn.functional import grid_sample

    # slices as channels: all of them move alike
    flat = volume[0].reshape(*volume.shape[1:3], -1).permute(2, 0, 1)[None].float() - outside
    moved = grid_sample(flat, grid, mode=mode, padding_mode="zeros", align_corners=True) + outside
    return moved[0].permute(1, 2, 0).reshape(volume.shape).contiguous()


def smoothed(fields: np.ndarray, sigma: float) -> np.ndarray:
    """Fields (N, X, Y) under a Gaussian of ``sigma`` voxels, with zeros around them and the kernel cut at 4 sigma.

    As ``scipy.ndimage.gaussian_filter(mode="constant")`` does it, by two matrix products: where the kernel is wider
    than the field, as here, they take a small part of its time.
    """
    kernels = {edge: _kernel(edge, sigma) for edge in set(fields.shape[1:])}
    first, second = (kernels[edge] for edge in fields.shape[1:])
    return np.asarray(first @ fields @ second)


def _kernel(edge: int, sigma: float) -> np.ndarray:
    """What each of ``edge`` voxels gets of every other, (edge, edge)."""
    radius = int(4.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    distance = np.arange(edge)
    # the same for equal distances: looked up, as exp takes longest
    share = np.where(distance <= radius, np.exp(-0.5 * (distance / sigma) ** 2), 0.0) / weights.sum()
    return np.asarray(share[_distances(edge)])


@lru_cache(maxsize=4)
def _distances(edge: int) -> np.ndarray:
    """How far each of ``edge`` voxels is from every other, (edge, edge)."""
    return np.abs(np.subtract.outer(np.arange(edge), np.arange(edge)))


@lru_cache(maxsize=4)
def _centred(shape: tuple[int, ...]) -> np.ndarray:
    """Places of all voxels from the middle, (2, X, Y)."""
    return np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in shape), indexing="ij"))


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
