"""Random flips, quarter turns and small intensity changes of labelled crops.

Probabilities and ranges follow the fine-tuning example of Swin UNETR for multi-organ segmentation in MONAI's
research contributions (SwinUNETR/BTCV: flips 0.2 per axis, quarter turns 0.2, intensity scale and shift 0.1
each with range 0.1). Deviation: intensities of CT stay as they are, because Hounsfield units are calibrated:
callers pass the study's modality.
"""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
import torch

INTENSITY_RANGE = 0.1


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
