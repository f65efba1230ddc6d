"""Crops for training: drawn by a NumPy generator from mapped volumes, a fraction of a millisecond each in 2D."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from fedmedseg.core.data_settings import DataSection
from fedmedseg.data.augmentation import augment

__all__ = ["ImageSource", "LabelledSource", "augment", "image_crop", "labelled_crop", "tissue_share"]

ATTEMPTS = 10
"""Positions tried for enough tissue; then the best of them is taken."""
_PROBED = 4096
"""Voxels of a crop looked at when its share of tissue is estimated."""


class ImageSource(Protocol):
    """What crops of images are drawn from: Volumes, or a view of some of them."""

    def __len__(self) -> int:
        """Number of volumes."""
        ...

    def image(self, index: int) -> np.ndarray:
        """Normalised image (1, X, Y, Z)."""
        ...

    def tissue(self, index: int) -> float:
        """Normalised intensity above which a voxel is tissue."""
        ...

    def slice_tissue(self, index: int) -> np.ndarray:
        """Share of tissue in each slice (Z,)."""
        ...


class LabelledSource(Protocol):
    """What labelled crops are drawn from: Volumes, or a view of some of them."""

    def __len__(self) -> int:
        """Number of volumes."""
        ...

    def image(self, index: int) -> np.ndarray:
        """Normalised image (1, X, Y, Z)."""
        ...

    def label(self, index: int) -> np.ndarray | None:
        """Label map (X, Y, Z)."""
        ...

    def points(self, index: int) -> dict[int, np.ndarray]:
        """For each structure present: voxels to centre crops on (N, 3)."""
        ...


def image_crop(volumes: ImageSource, rng: np.random.Generator, data: DataSection) -> torch.Tensor:
    """A random crop (1, *data.crop), float32, with at least ``data.min_foreground`` tissue.

    2D: a random slice among those with enough tissue (the fullest slice where none has), then a random
    position. Of ten positions the first with enough tissue is taken, else the one with most.
    """
    index = int(rng.integers(len(volumes)))
    image = volumes.image(index)[0]
    depth = None
    if data.spatial_dims == 2:
        shares = volumes.slice_tissue(index)
        full = np.flatnonzero(shares >= data.min_foreground)
        depth = int(full[rng.integers(full.size)]) if full.size else int(np.argmax(shares))
    best, most = None, -1.0
    for _ in range(ATTEMPTS):
        corner = tuple(int(rng.integers(size - edge + 1)) for size, edge in _room(image, data))
        box = _box(corner, edges(image.shape, data), depth)
        share = tissue_share(image[box], volumes.tissue(index))
        if share > most:
            best, most = box, share
        if share >= data.min_foreground:
            break
    return _image_tensor(image[best])


def labelled_crop(
    volumes: LabelledSource, rng: np.random.Generator, data: DataSection, *, foreground_share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A crop (1, *data.crop) float32 and its label (1, *data.crop) int64.

    With probability ``foreground_share`` it is centred, as far as the border allows, on a voxel of a
    structure; each structure present in the volume is equally likely, however small. Otherwise anywhere.

    Raises:
        ValueError: a volume without a label.
    """
    index = int(rng.integers(len(volumes)))
    image, label = volumes.image(index)[0], volumes.label(index)
    if label is None:
        raise ValueError("labelled_crop needs volumes with labels")
    room = _room(image, data)
    points = volumes.points(index)
    depth = None
    if rng.random() < foreground_share and points:
        candidates = points[list(points)[int(rng.integers(len(points)))]]
        centre = [int(place) for place in candidates[rng.integers(len(candidates))]]
        corner = tuple(
            min(max(place - edge // 2, 0), size - edge) for place, (size, edge) in zip(centre, room, strict=False)
        )
        depth = centre[2] if data.spatial_dims == 2 else None
    else:
        corner = tuple(int(rng.integers(size - edge + 1)) for size, edge in room)
        depth = int(rng.integers(image.shape[2])) if data.spatial_dims == 2 else None
    box = _box(corner, edges(image.shape, data), depth)
    return _image_tensor(image[box]), torch.from_numpy(np.array(label[box], dtype=np.int64, order="C"))[None]


def tissue_share(crop: np.ndarray, threshold: float) -> float:
    """Share of voxels above ``threshold``, estimated on an even grid of at most a few thousand of them."""
    step = max(1, int(np.ceil((crop.size / _PROBED) ** (1 / crop.ndim))))
    probed = crop[tuple(slice(step // 2, None, step) for _ in crop.shape)]
    return float(np.count_nonzero(probed > threshold)) / probed.size


def _room(image: np.ndarray, data: DataSection) -> list[tuple[int, int]]:
    return list(zip(image.shape, edges(image.shape, data), strict=False))


def edges(shape: tuple[int, ...], data: DataSection) -> tuple[int, ...]:
    """Edges of a crop of a volume (X, Y, Z): those of the study, with ``data.whole_depth`` all slices."""
    return (*data.crop[:2], shape[2]) if data.whole_depth else data.crop


def _box(corner: tuple[int, ...], crop: tuple[int, ...], depth: int | None) -> tuple[slice | int, ...]:
    box: tuple[slice | int, ...] = tuple(slice(start, start + edge) for start, edge in zip(corner, crop, strict=True))
    return box if depth is None else (*box, depth)


def _image_tensor(crop: np.ndarray) -> torch.Tensor:
    # a copy: the mapped file is read-only and not contiguous here
    return torch.from_numpy(np.array(crop, dtype=np.float32, order="C"))[None]
