"""Parallel DICOM slices as one volume with the affine that their headers state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmedseg.core.errors import DataError, Reason
from fedmedseg.data.importers.base import reading

SAME_LOCATION_MM = 0.5
"""Slices whose positions along the normal differ by less lie at one location."""
_GEOMETRY = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "SliceThickness"]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Geometry of one DICOM image, in mm and in the patient coordinates of DICOM (x left, y posterior, z up)."""

    path: Path
    position: tuple[float, float, float]
    row: tuple[float, float, float]
    """Direction in which the column index grows."""
    column: tuple[float, float, float]
    """Direction in which the row index grows."""
    spacing: tuple[float, float]
    """Between rows, between columns."""
    shape: tuple[int, int]
    """Columns, rows: the (X, Y) of arrays here."""
    thickness: float

    @property
    def location(self) -> float:
        """Position along the slice normal in mm."""
        return float(np.dot(np.cross(self.row, self.column), self.position))


def read_header(path: Path, tags: Sequence[str]) -> Any:
    """The named elements of a DICOM file, without its pixels.

    Raises:
        DataError: not a DICOM file.
    """
    import pydicom

    with reading(path):
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))


def read_slice(path: Path) -> Slice:
    """Geometry of one image.

    Raises:
        DataError: unreadable, or an element of the geometry is missing or impossible.
    """
    header = read_header(path, _GEOMETRY)
    try:
        orientation = [float(value) for value in header.ImageOrientationPatient]
        position = [float(value) for value in header.ImagePositionPatient]
        rows, columns = (float(value) for value in header.PixelSpacing)
        found = Slice(
            path=path,
            position=(position[0], position[1], position[2]),
            row=(orientation[0], orientation[1], orientation[2]),
            column=(orientation[3], orientation[4], orientation[5]),
            spacing=(rows, columns),
            shape=(int(header.Columns), int(header.Rows)),
            thickness=float(header.SliceThickness),
        )
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        missing = [name for name in _GEOMETRY if getattr(header, name, None) is None]
        what = f"without {', '.join(missing)}" if missing else str(error)
        raise DataError(
            "DICOM geometry", got=f"{path} ({what})", expected=", ".join(_GEOMETRY), reason=Reason.DATA
        ) from None
    lengths = np.linalg.norm([found.row, found.column], axis=1)
    square = abs(float(np.dot(found.row, found.column))) < 1e-3
    if np.abs(lengths - 1).max() > 1e-3 or not square or min(*found.spacing, found.thickness) <= 0:
        raise DataError("DICOM geometry", got=str(path), expected="orthogonal unit directions and positive spacings")
    return found


def affine(slices: Sequence[Slice]) -> np.ndarray:
    """NIfTI affine (4, 4), mm, of arrays indexed [column, row, slice]; ``slices`` sorted by location.

    From the DICOM standard, part 3, section C.7.6.2.1.1: a pixel lies at position + column index x column
    spacing x row direction + row index x row spacing x column direction. NIfTI's x and y point the other way.

    Raises:
        DataError: the slices are not parallel, not alike or not evenly spaced.
    """
    first = slices[0]
    for other in slices[1:]:
        turned = np.abs(np.subtract(other.row + other.column, first.row + first.column)).max() > 1e-3
        if turned or other.shape != first.shape or np.abs(np.subtract(other.spacing, first.spacing)).max() > 1e-3:
            raise DataError("DICOM stack", got="slices that differ in grid", expected="parallel slices on one grid")
    if len(slices) > 1:
        steps = np.diff([one.position for one in slices], axis=0)
        if np.abs(steps - steps.mean(axis=0)).max() > SAME_LOCATION_MM:
            raise DataError("DICOM stack", got="uneven slice positions", expected="evenly spaced slices in a line")
        step = steps.mean(axis=0)
    else:
        step = np.cross(first.row, first.column) * first.thickness
    matrix = np.eye(4)
    matrix[:3, 0] = np.array(first.row) * first.spacing[1]
    matrix[:3, 1] = np.array(first.column) * first.spacing[0]
    matrix[:3, 2] = step
    matrix[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


def read_pixels(slices: Sequence[Slice]) -> np.ndarray:
    """Voxels (X, Y, Z): int16 where the headers hold no other rescaling, else float32.

    Raises:
        DataError: pixel data is missing, compressed beyond what can be read, or of another shape.
    """
    import pydicom

    planes = []
    for one in slices:
        with reading(one.path):
            image = pydicom.dcmread(one.path)
            plane = image.pixel_array
            slope, intercept = float(image.get("RescaleSlope", 1)), float(image.get("RescaleIntercept", 0))
        if plane.T.shape != one.shape:
            raise DataError("DICOM pixels", got=f"shape {plane.shape} in {one.path}", expected="one grey-value plane")
        planes.append(plane.T.astype(np.float64) * slope + intercept)
    volume = np.stack(planes, axis=-1)
    limits = np.iinfo(np.int16)
    whole = (volume == np.round(volume)).all() and volume.min() >= limits.min and volume.max() <= limits.max
    return volume.astype(np.int16 if whole else np.float32)
