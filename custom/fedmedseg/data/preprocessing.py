"""From a checked file to a normalised volume on the study's grid: orientation, spacing, intensity, padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import DataError
from fedmedseg.core.seeding import generator
from fedmedseg.data import geometry
from fedmedseg.data.checks import CaseRejected, open_nifti, read_voxels
from fedmedseg.data.datalist import Case
from fedmedseg.data.geometry import Grid
from fedmedseg.data.landmarks import to_voxel, to_world

VERSION = 2
"""Part of every cache key: raise it when a preprocessed volume would change."""
CLIP = 5.0
"""Standard deviations beyond which MR intensities are clipped."""
CAP_PERCENTILE = 96.0
MR_TISSUE_SHARE = 0.1
CT_TISSUE_HU = -500.0
POINTS_PER_CLASS = 1024
TOO_SMALL = "smaller than the crop"


@dataclass(frozen=True, kw_only=True)
class FixedIntensity:
    """Clip to ``low``..``high`` HU, then subtract ``mean`` and divide by ``deviation``: the same for every case."""

    low: float
    high: float
    mean: float
    deviation: float


FIXED: dict[str, FixedIntensity] = {
    "heart_crop": FixedIntensity(low=-42.0, high=878.0, mean=373.769, deviation=166.805),
    "whole_scan": FixedIntensity(low=-1024.0, high=696.0, mean=-439.613, deviation=520.983),
}
"""The two sets in the code of Tölle et al., npj Digital Medicine 2025 (Cardio-AI/fed-foundation-model-cardiac-ct):
``heart_crop`` stands in tavi_predictor.py and transforms.py, ``whole_scan`` in train_federated.py. Theirs trained with
one and predicted with the other; here a study names one, and everything goes through ``normalise``."""


@dataclass(frozen=True)
class Prepared:
    """Arrays by name, and JSON figures that belong to them."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def prepare_image(case: Case, data: DataSection) -> Prepared:
    """Read, turn, resample, normalise and pad the image of a case that passed the checks.

    Returns ``image`` float32 (X, Y, Z), and figures that lead back to the file's grid.

    Raises:
        CaseRejected: smaller than three quarters of the crop along an axis, or not readable.
    """
    native = native_grid(case.image)
    orientation = geometry.canonical_orientation(native.affine, data.spatial_dims)
    oriented = geometry.oriented_grid(native, orientation)
    target = geometry.target_grid(oriented, data.spacing, data.longest_edge)
    widths = geometry.padding(target.shape, data.crop)
    if widths is None:
        raise CaseRejected(TOO_SMALL, shape=target.shape)
    voxels = torch.from_numpy(geometry.orient(read_voxels(case.image), orientation))[None]
    image, tissue = normalise(geometry.resample(voxels, oriented, target, mode="bilinear")[0].numpy(), data)
    # what lies outside the scan looks like the darkest voxel, usually air
    image = np.ascontiguousarray(np.pad(image, widths, constant_values=float(image.min())))
    meta: dict[str, Any] = {
        "native_shape": list(native.shape),
        "native_affine": native.affine.tolist(),
        "orientation": orientation.tolist(),
        "target_shape": list(target.shape),
        "target_affine": target.affine.tolist(),
        "padding": [list(pair) for pair in widths],
        "spacing": list(target.spacing),
        "tissue": tissue,
        "slice_tissue": (image > tissue).mean(axis=(0, 1)).tolist(),
    }
    return Prepared({"image": image}, meta)


def prepare_label(case: Case, meta: dict[str, Any]) -> Prepared:
    """The label of a case on the grid of its prepared image, whose figures are ``meta``.

    Returns ``label`` uint8 (X, Y, Z) and ``points`` int32 (N, 3), with the rows of ``label_points``.

    Raises:
        CaseRejected: not readable.
    """
    if case.label is None:
        raise ValueError("a case without a label has none to prepare")
    steps = Steps.of(meta)
    voxels = torch.from_numpy(geometry.orient(read_voxels(case.label), steps.orientation))[None]
    label = geometry.resample(voxels, steps.oriented, steps.target, mode="nearest")[0].round().to(torch.uint8).numpy()
    label = np.ascontiguousarray(np.pad(label, steps.widths))
    points, rows = label_points(label)
    return Prepared({"label": label, "points": points}, {"points": rows})


def prepare_heart(case: Case, meta: dict[str, Any]) -> Prepared:
    """The heart's structures of a case on the grid of its prepared image, whose figures are ``meta``.

    Returns ``heart`` uint8 (X, Y, Z).

    Raises:
        CaseRejected: not readable; or it marks nothing where the image is, which would pass for a scan without a map.
    """
    steps = Steps.of(meta)
    heart = heart_on(steps.target, case)
    if not heart.any():
        raise CaseRejected("heart map that marks nothing within the image: another patient's, or in another space")
    return Prepared({"heart": np.ascontiguousarray(np.pad(heart, steps.widths))}, {})


def heart_on(grid: Grid, case: Case) -> np.ndarray:
    """The heart's structures of a case, whose map may lie on any grid, seen on ``grid``: uint8, 0 where it ends.

    Raises:
        CaseRejected: not readable.
        DataError: the case has no such map.
    """
    if case.heart is None:
        raise DataError("heart", got=f"case {case.key} without that map", expected="a case that has it")
    source = native_grid(case.heart)
    # a rim of background, because resampling continues what lies at the border
    voxels = torch.from_numpy(np.pad(read_voxels(case.heart), 1))[None]
    shift = np.eye(4)
    shift[:3, 3] = -1.0
    x, y, z = (edge + 2 for edge in source.shape)
    rimmed = Grid((x, y, z), source.affine @ shift)
    return geometry.resample(voxels, rimmed, grid, mode="nearest")[0].round().to(torch.uint8).numpy()


@dataclass(frozen=True)
class Steps:
    """What was done to a file's grid, read back from the figures of a prepared image."""

    native: Grid
    orientation: np.ndarray
    oriented: Grid
    target: Grid
    widths: geometry.Widths

    @classmethod
    def of(cls, meta: dict[str, Any]) -> Steps:
        """From the figures ``prepare_image`` returned."""
        native = Grid(tuple(meta["native_shape"]), np.array(meta["native_affine"]))
        orientation = np.array(meta["orientation"])
        target = Grid(tuple(meta["target_shape"]), np.array(meta["target_affine"]))
        first, second, third = ((int(before), int(after)) for before, after in meta["padding"])
        oriented = geometry.oriented_grid(native, orientation)
        return cls(native, orientation, oriented, target, (first, second, third))

    def to_voxel(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) in mm of the world as continuous voxels of the prepared grid; rows of nan stay so."""
        return to_voxel(points, self.target.affine) + [before for before, _ in self.widths]

    def to_world(self, voxels: np.ndarray) -> np.ndarray:
        """Continuous voxels (N, 3) of the prepared grid in mm of the world; rows of nan stay so."""
        return to_world(np.asarray(voxels) - [before for before, _ in self.widths], self.target.affine)


def back_to_native(probabilities: torch.Tensor, meta: dict[str, Any]) -> torch.Tensor:
    """``probabilities`` (C, X, Y, Z) of the prepared grid on the file's own grid (C, X', Y', Z'), float32.

    Padding is cut off, then values are interpolated linearly (copied exactly where nothing was resampled),
    then axes are turned back.
    """
    steps = Steps.of(meta)
    volume = geometry.undo_padding(probabilities, steps.widths)
    volume = geometry.resample(volume, steps.target, steps.oriented, mode="bilinear")
    return geometry.undo_orientation(volume, steps.orientation).contiguous()


def native_grid(path: Path) -> Grid:
    """The grid of a NIfTI file."""
    image = open_nifti(path)
    x, y, z = (int(edge) for edge in image.shape)
    return Grid((x, y, z), np.asarray(image.affine, dtype=np.float64))


def normalise(image: np.ndarray, data: DataSection) -> tuple[np.ndarray, float]:
    """Intensities a network can compare between scanners, and the value above which a voxel is tissue.

    MR: z-score over the foreground, clipped to +-5. Foreground is what lies above a tenth of the way from
    the 1st to the 99th percentile, which leaves air out and does not depend on a few very bright voxels.
    MR with ``intensity: capped``, as FedCRLD's published code: values above the 96th percentile become that, then a
    z-score over the whole volume, air included.
    CT: the HU window mapped to 0..1, or one of ``FIXED``. Tissue is what lies above both the low end and -500 HU.
    """
    from monai.transforms import NormalizeIntensity, ScaleIntensityRange

    fixed = FIXED.get(data.intensity)
    if fixed is not None:
        scored = NormalizeIntensity(subtrahend=np.array(fixed.mean), divisor=np.array(fixed.deviation))(
            np.clip(image, fixed.low, fixed.high)
        )
        return np.asarray(scored, dtype=np.float32), (max(CT_TISSUE_HU, fixed.low) - fixed.mean) / fixed.deviation
    if data.modality == "ct":
        low, high = data.window
        scaled = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)(image)
        return np.asarray(scaled, dtype=np.float32), max(0.0, (CT_TISSUE_HU - low) / (high - low))
    dark, bright = (float(value) for value in np.percentile(image, (1.0, 99.0)))
    if bright == dark:
        # nearly all voxels are equal: percentiles say nothing
        dark, bright = float(image.min()), float(image.max())
    threshold = dark + MR_TISSUE_SHARE * (bright - dark)
    if data.intensity == "capped":
        image = np.minimum(image, np.percentile(image, CAP_PERCENTILE))
        foreground = image.ravel().astype(np.float64)
    else:
        foreground = image[image > threshold].astype(np.float64)
    mean, deviation = float(foreground.mean()), float(foreground.std())
    if deviation == 0.0:
        raise CaseRejected("image without contrast")
    scored = NormalizeIntensity(subtrahend=np.array(mean), divisor=np.array(deviation))(image)
    if data.intensity == "capped":
        return np.asarray(scored, dtype=np.float32), (threshold - mean) / deviation
    return np.clip(np.asarray(scored, dtype=np.float32), -CLIP, CLIP), max(-CLIP, (threshold - mean) / deviation)


def label_points(label: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    """Voxels of each structure to centre crops on: (N, 3) indices, and rows ``[label, first, after last]``.

    At most 1024 voxels of a structure, drawn without replacement by a fixed generator.
    """
    found: list[np.ndarray] = []
    rows: list[list[int]] = []
    start = 0
    for value in np.unique(label):
        if value == 0:
            continue
        flat = np.flatnonzero(label == value)
        if flat.size > POINTS_PER_CLASS:
            flat = np.sort(generator(0, "label points", int(value)).choice(flat, POINTS_PER_CLASS, replace=False))
        found.append(np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int32))
        rows.append([int(value), start, start + flat.size])
        start += flat.size
    return (np.concatenate(found) if found else np.zeros((0, 3), dtype=np.int32)), rows


def entry_digest(contents: Sequence[str], data: DataSection) -> str:
    """Cache key of something prepared: SHA-256 of the files it stands on, and every setting that shapes it."""
    settings = {
        "version": VERSION,
        "contents": list(contents),
        "modality": data.modality,
        "spatial_dims": data.spatial_dims,
        "spacing": data.spacing,
        "window": data.window if data.modality == "ct" else None,
        "crop": data.crop,
        # named only where they differ from their defaults: what was prepared before they were there stays valid
        **data.model_dump(mode="json", include={"longest_edge", "intensity"}, exclude_defaults=True),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
