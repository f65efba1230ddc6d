"""The gate every case passes before it is used: nothing is allocated before the header was found harmless.

A case that fails is set aside with a short reason and counted; the rest goes on. Results are cached, so
that a fresh process checks only files that are new or have changed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmedseg.core.atomic import file_sha256
from fedmedseg.core.data_settings import DataSection
from fedmedseg.data.cache import Cache
from fedmedseg.data.datalist import Case
from fedmedseg.data.geometry import (
    Grid,
    canonical_orientation,
    oriented_grid,
    same_grid,
    spacing_of,
    target_grid,
)

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of every cache key: raise it when a check changes."""
SPACING_MM = (0.01, 50.0)
FLAT = 1e-3
"""Least volume of the cell spanned by the affine's unit axes: below it the axes lie in one plane."""
MARGIN = 1 << 16
"""Bytes a decompressed file may hold beyond what its header announces."""
HEART_STRUCTURES = 7
"""Myocardium, four chambers, aorta and pulmonary artery (``data.tasks``)."""
_CHUNK = 1 << 20


class CaseRejected(Exception):
    """One case cannot be used. ``reason`` is short and names nobody; ``shape`` where a crop did not fit."""

    def __init__(self, reason: str, *, shape: tuple[int, int, int] | None = None) -> None:
        self.reason, self.shape = reason, shape
        super().__init__(reason)


@dataclass(frozen=True)
class Admission:
    """What the gate let through, and what it set aside."""

    valid: list[Case]
    quarantined: dict[str, str]
    """Case key -> reason."""
    sha256: dict[str, list[str]] = field(default_factory=dict)
    """Case key -> SHA-256 of the image file, and of the label file where there is one."""
    heart_sha256: dict[str, str] = field(default_factory=dict)
    """Case key -> SHA-256 of the file of the heart's structures, where there is one."""


@contextmanager
def unlogged_cases() -> Iterator[None]:
    """Cases that are set aside are not logged: for calls whose table names them, and whose salt is of this call."""
    logger.addFilter(_beyond_warnings)
    try:
        yield
    finally:
        logger.removeFilter(_beyond_warnings)


def _beyond_warnings(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def admit(cases: Sequence[Case], *, data: DataSection, budget_mb: int, cache: Cache) -> Admission:
    """Check every case. Never raises for a bad case."""
    valid: list[Case] = []
    quarantined: dict[str, str] = {}
    sha256: dict[str, list[str]] = {}
    hearts: dict[str, str] = {}
    for case in cases:
        result = check(case, data=data, budget_mb=budget_mb, cache=cache)
        if result["reason"] is None:
            valid.append(case)
            sha256[case.key] = result["sha256"]
            if case.heart is not None:
                hearts[case.key] = result["heart_sha256"]
        else:
            quarantined[case.key] = result["reason"]
    return Admission(valid, quarantined, sha256, hearts)


def check(case: Case, *, data: DataSection, budget_mb: int, cache: Cache) -> dict[str, Any]:
    """``{"reason": None or text, "sha256": [image, label]}`` of one case, cached while its files are unchanged."""
    known = remembered(case, data=data, budget_mb=budget_mb, cache=cache)
    if known is not None:
        return known
    name = _digest(case, data, budget_mb)
    try:
        inspect(case, data=data, budget_mb=budget_mb)
        result: dict[str, Any] = {
            "reason": None,
            "sha256": [file_sha256(path) for path in (case.image, case.label) if path],
        }
        if case.heart is not None:
            result["heart_sha256"] = file_sha256(case.heart)
    except CaseRejected as rejected:
        result = {"reason": rejected.reason, "sha256": []}
        logger.warning("case %s set aside: %s", case.key, rejected.reason)
    except OSError:
        # the disk may recover: not remembered
        return {"reason": "file cannot be read", "sha256": []}
    cache.write_record("checks", name, result)
    return result


def remembered(case: Case, *, data: DataSection, budget_mb: int, cache: Cache) -> dict[str, Any] | None:
    """What ``check`` gave for these very files before, or None; files that cannot be looked at are told at once."""
    try:
        name = _digest(case, data, budget_mb)
    except OSError:
        return {"reason": "file cannot be read", "sha256": []}
    return cache.record("checks", name)


def inspect(case: Case, *, data: DataSection, budget_mb: int) -> None:
    """Every check of one case, cheapest first.

    Raises:
        CaseRejected: with the reason.
        OSError: the file could not be read at all.
    """
    grid = read_header(case.image, data=data, budget_mb=budget_mb)
    if case.label is not None:
        with _file_of("label"):
            label_grid = read_header(case.label, data=data, budget_mb=budget_mb)
        if label_grid.shape != grid.shape:
            raise CaseRejected("image and label differ in shape")
        if not same_grid(grid, label_grid):
            raise CaseRejected("image and label differ in affine")
    check_stream(case.image)
    image = read_voxels(case.image)
    if not np.isfinite(image).all():
        raise CaseRejected("voxels that are not finite")
    if image.min() == image.max():
        raise CaseRejected("image without contrast")
    del image
    if case.label is not None:
        with _file_of("label"):
            check_stream(case.label)
            label = read_voxels(case.label)
        check_label(label, case, classes=data.classes)
    if case.landmarks is not None:
        # imported here because it rejects with this module's error
        from fedmedseg.data.landmarks import check_landmarks

        check_landmarks(case.landmarks, grid)
    if case.heart is not None:
        with _file_of("heart label"):
            read_header(case.heart, data=data, budget_mb=budget_mb)
            check_stream(case.heart)
            heart = read_voxels(case.heart)
        check_heart(heart)


@contextmanager
def _file_of(what: str) -> Iterator[None]:
    """Say whose file it is that cannot be used: a case is named after its image."""
    try:
        yield
    except CaseRejected as rejected:
        raise CaseRejected(f"file of the {what}: {rejected.reason}", shape=rejected.shape) from None


def read_header(path: Path, *, data: DataSection, budget_mb: int) -> Grid:
    """The grid of a NIfTI file; reads the header only.

    Raises:
        CaseRejected: no NIfTI file, not a plain 3-D volume, over the byte budget, or a broken geometry.
    """
    image = open_nifti(path)
    shape = tuple(int(edge) for edge in image.shape)
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iufb":
        raise CaseRejected("voxels that are not plain numbers (colour or complex)")
    if len(shape) != 3:
        raise CaseRejected(f"{len(shape)} axes instead of 3")
    if min(shape) < 1:
        raise CaseRejected("an axis without voxels")
    budget = budget_mb * 2**20
    # voxels are worked on as float32 whatever the file holds
    if math.prod(shape) * max(dtype.itemsize, 4) > budget:
        raise CaseRejected("larger than the memory budget")
    affine = np.asarray(image.affine, dtype=np.float64)
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=np.float64)
    if not np.isfinite(affine).all():
        raise CaseRejected("affine that is not finite")
    spacings = np.array([*zooms, *spacing_of(affine)])
    if not np.isfinite(spacings).all():
        raise CaseRejected("spacing that is not finite")
    if not np.any(affine[:3, :3]) or abs(np.linalg.det(affine[:3, :3])) <= FLAT * float(np.prod(spacing_of(affine))):
        raise CaseRejected("affine whose determinant is zero")
    if spacings.min() < SPACING_MM[0] or spacings.max() > SPACING_MM[1]:
        raise CaseRejected(f"spacing outside {SPACING_MM[0]}..{SPACING_MM[1]} mm")
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    oriented = oriented_grid(grid, canonical_orientation(affine, data.spatial_dims))
    if math.prod(target_grid(oriented, data.spacing, data.longest_edge).shape) * 4 > budget:
        raise CaseRejected("larger than the memory budget after resampling")
    return grid


def check_stream(path: Path) -> None:
    """Read a compressed file to its end, so that gzip compares its checksum, which no NIfTI reader does.

    Raises:
        CaseRejected: damaged, cut off, or far more bytes than the header announces.
    """
    image = open_nifti(path)
    expected = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    try:
        size = _stream_size(path, stop_after=expected + MARGIN)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise CaseRejected("damaged compressed file") from None
    if size < expected:
        raise CaseRejected("file cut off")
    if size > expected + MARGIN and path.name.endswith(".gz"):
        raise CaseRejected("more compressed data than the header announces")


def read_voxels(path: Path) -> np.ndarray:
    """All voxels (X, Y, Z) as float32 with the header's slope and intercept applied. For checked headers only.

    Raises:
        CaseRejected: the data cannot be read although the header can.
    """
    try:
        with np.errstate(over="ignore"):
            return np.asarray(open_nifti(path).dataobj, dtype=np.float32)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile, MemoryError, TypeError):
        raise CaseRejected("voxels that cannot be read") from None


def check_label(label: np.ndarray, case: Case, *, classes: int) -> None:
    """Whole numbers of the study's label map, something among them unless declared empty.

    Raises:
        CaseRejected: with the reason.
    """
    if not np.isfinite(label).all():
        raise CaseRejected("label voxels that are not finite")
    values = np.unique(label)
    if not np.array_equal(values, np.rint(values)):
        raise CaseRejected("label values that are not whole numbers")
    if values[0] < 0 or values[-1] >= classes:
        raise CaseRejected(f"label values outside 0..{classes - 1}")
    present = {int(value) for value in values} - {0}
    if case.annotated_labels is not None:
        declared = set(case.annotated_labels)
        if not declared <= set(range(1, classes)):
            raise CaseRejected(f"annotated_labels outside 1..{classes - 1}")
        if present - declared:
            raise CaseRejected("label values that annotated_labels leaves out")
        if not declared:
            return
    if not present and not case.allow_empty:
        raise CaseRejected("empty label")


def check_heart(label: np.ndarray) -> None:
    """Whole numbers from 0 to the number of the heart's structures.

    Raises:
        CaseRejected: with the reason.
    """
    if not np.isin(label, np.arange(HEART_STRUCTURES + 1)).all():
        raise CaseRejected(f"heart label values outside 0..{HEART_STRUCTURES}")


def open_nifti(path: Path) -> Any:
    """A NIfTI image whose voxels are not read yet.

    Raises:
        CaseRejected: no NIfTI file or a broken header.
        FileNotFoundError: gone.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image = nib.load(path)
        shape_is_sane = all(edge >= 0 for edge in image.shape)  # type: ignore[attr-defined]
    except FileNotFoundError:
        raise
    except (ImageFileError, HeaderDataError):
        raise CaseRejected("no NIfTI file") from None
    except (ValueError, EOFError, OverflowError, zlib.error, gzip.BadGzipFile, KeyError, TypeError):
        raise CaseRejected("header that cannot be read") from None
    if not isinstance(image, nib.Nifti1Image) or not shape_is_sane:  # Nifti2Image is one too
        raise CaseRejected("no NIfTI file")
    return image


def _stream_size(path: Path, *, stop_after: int) -> int:
    """Decompressed bytes of a file, or a number beyond ``stop_after`` as soon as it is exceeded."""
    if not path.name.endswith(".gz"):
        return path.stat().st_size
    total = 0
    with gzip.open(path, "rb") as stream:
        while total <= stop_after and (chunk := stream.read(_CHUNK)):
            total += len(chunk)
    return total


def _digest(case: Case, data: DataSection, budget_mb: int) -> str:
    files = []
    for path in case.files:
        status = path.stat()
        files.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    content = {
        "version": VERSION,
        "files": files,
        "labels": data.labels,
        "spatial_dims": data.spatial_dims,
        "spacing": data.spacing,
        "budget_mb": budget_mb,
        "annotated_labels": case.annotated_labels,
        "allow_empty": case.allow_empty,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
