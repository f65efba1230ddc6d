"""Slices of volumes for pretraining: one of every part of several volumes at a time, and views of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import DataError
from fedmedseg.data.augmentation import VIEWS, changed, deformed, draw_change, draw_deformation
from fedmedseg.data.partitions import Rule, partition_of_slices
from fedmedseg.data.sampling import ATTEMPTS, ImageSource, tissue_share

DEFORMED = 0.67
"""Share of views that are deformed; the others are crops without a deformation."""


@dataclass(frozen=True)
class SliceAt:
    """Where a slice lies; volume and slice are the site's own and never leave it."""

    volume: int
    slice: int
    part: int


def all_slices(volumes: ImageSource, parts: int, rule: Rule = "even") -> list[SliceAt]:
    """Every slice of every volume, in their order."""
    found = []
    for volume in range(len(volumes)):
        of_slice = partition_of_slices(_depth(volumes, volume), parts, rule)
        found += [SliceAt(volume=volume, slice=index, part=int(part)) for index, part in enumerate(of_slice)]
    return found


def require_parts(volumes: ImageSource, parts: int, rule: Rule, *, system: str) -> None:
    """Refuse a ``rule`` for which a volume of this site is too shallow; ``system`` is whose settings name it.

    Raises:
        DataError: without saying which volume it is.
    """
    for volume in range(len(volumes)):
        try:
            partition_of_slices(_depth(volumes, volume), parts, rule)
        except ValueError:
            raise DataError(
                f"{system}.partition",
                got=f"{rule} in {parts} parts, and a volume of too few slices for it",
                expected="a rule that every volume of this site has slices enough for",
                remedy=f"set {system}.partition to even, or {system}.parts lower",
            ) from None


def draw_slices(
    volumes: ImageSource, rng: np.random.Generator, *, volumes_per_step: int, parts: int, rule: Rule = "even"
) -> list[SliceAt]:
    """One random slice of every part that has any, of each of ``volumes_per_step`` volumes.

    Volumes are drawn without replacement; where there are fewer, each comes once before any comes twice.
    """
    drawn: list[int] = []
    while len(drawn) < volumes_per_step:
        drawn += rng.permutation(len(volumes)).tolist()
    found = []
    for volume in drawn[:volumes_per_step]:
        of_slice = partition_of_slices(_depth(volumes, volume), parts, rule)
        for part in np.unique(of_slice):
            candidates = np.flatnonzero(of_slice == part)
            found.append(SliceAt(volume=volume, slice=int(candidates[rng.integers(candidates.size)]), part=int(part)))
    return found


def slice_crop(volumes: ImageSource, at: SliceAt, rng: np.random.Generator, data: DataSection) -> torch.Tensor:
    """A random crop (1, *data.crop) of one slice, float32; of ten positions the first with enough tissue, else the one
    with most.
    """
    image = volumes.image(at.volume)[0, :, :, at.slice]
    best, most = image[: data.crop[0], : data.crop[1]], -1.0
    for _ in range(ATTEMPTS):
        x, y = (int(rng.integers(size - edge + 1)) for size, edge in zip(image.shape, data.crop, strict=True))
        crop = image[x : x + data.crop[0], y : y + data.crop[1]]
        share = tissue_share(crop, volumes.tissue(at.volume))
        if share > most:
            best, most = crop, share
        if share >= data.min_foreground:
            break
    return torch.from_numpy(np.array(best, dtype=np.float32, order="C"))[None]


def slice_views(
    volumes: ImageSource, places: Sequence[SliceAt], rng: np.random.Generator, data: DataSection
) -> torch.Tensor:
    """One random view each of several slices, (B, 1, *data.crop): a crop, mirrored; two of three times turned, scaled
    and deformed. Intensities of MR change a little, as in fine-tuning.

    Drawn one after the other, and then computed together: a view is the same whatever others stand behind it.
    """
    crops, deformations, changes = [], {}, []
    for index, at in enumerate(places):
        crops.append(slice_crop(volumes, at, rng, data))
        if rng.random() < DEFORMED:
            deformations[index] = draw_deformation(data.crop, rng, ranges=VIEWS)
        changes.append(draw_change(data.crop, rng, flip=0.5, turn=0.0, intensity=0.5))
    views = torch.stack(crops)
    if deformations:
        moved = list(deformations)
        views[moved] = deformed(views[moved], list(deformations.values()))
    return torch.stack([changed(view, one, data.modality) for view, one in zip(views, changes, strict=True)])


def draw_pairs(
    volumes: ImageSource,
    rng: np.random.Generator,
    data: DataSection,
    *,
    volumes_per_step: int,
    parts: int,
    rule: Rule = "even",
) -> tuple[list[SliceAt], tuple[torch.Tensor, torch.Tensor]]:
    """Slices by ``draw_slices``, and two views of each: what two calls of ``slice_views`` make, computed at once."""
    slices = draw_slices(volumes, rng, volumes_per_step=volumes_per_step, parts=parts, rule=rule)
    both = slice_views(volumes, [*slices, *slices], rng, data)
    return slices, (both[: len(slices)], both[len(slices) :])


def middle_crop(volumes: ImageSource, at: SliceAt, data: DataSection) -> torch.Tensor:
    """The middle crop (1, *data.crop) of a slice, unchanged: for features that must not depend on chance."""
    image = volumes.image(at.volume)[0, :, :, at.slice]
    x, y = ((size - edge) // 2 for size, edge in zip(image.shape, data.crop, strict=True))
    crop = image[x : x + data.crop[0], y : y + data.crop[1]]
    return torch.from_numpy(np.array(crop, dtype=np.float32, order="C"))[None]


def _depth(volumes: ImageSource, volume: int) -> int:
    return int(volumes.slice_tissue(volume).shape[0])
