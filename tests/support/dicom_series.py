"""A DICOM series made for a test, with a patient's name that must not be seen again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

STRAIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
POSITION = (10.0, 20.0, 30.0)
STEP, ROW_SPACING, COLUMN_SPACING = 2.5, 1.5, 2.0
"""mm between slices, rows and columns."""


def write_series(
    folder: Path,
    *,
    uid: str = "1.2.3",
    number: int = 1,
    count: int = 5,
    skip: int = -1,
    modality: str = "MR",
    voxels: np.ndarray | None = None,
    directions: Sequence[Sequence[float]] = STRAIGHT,
) -> None:
    """Slices 2.5 mm apart along the normal; of 4 columns and 6 rows, each filled with its number times 100.

    Args:
        folder: where they go.
        uid: of the series.
        number: of the series.
        count: how many slices.
        skip: a slice that is missing.
        modality: as DICOM calls it.
        voxels: int16 (columns, rows, slices) in their place.
        directions: in which the column index and the row index grow, in DICOM's patient coordinates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if voxels is None:
        voxels = np.broadcast_to(100 * np.arange(count, dtype=np.int16), (4, 6, count))
    row, column = (np.array(one) for one in directions)
    for index in range(voxels.shape[2]):
        if index == skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{uid}-{index}"
        image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        image.Modality, image.SeriesInstanceUID, image.SeriesNumber = modality, uid, number
        image.PatientName, image.InstanceNumber = "DOE^JOHN", index + 1
        image.Columns, image.Rows = voxels.shape[:2]
        image.PixelSpacing, image.SliceThickness = [ROW_SPACING, COLUMN_SPACING], 2.0
        image.ImageOrientationPatient = [*row, *column]
        place = np.array(POSITION) + index * STEP * np.cross(row, column)
        image.ImagePositionPatient = [round(float(value), 6) for value in place]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 1
        image.PixelData = np.ascontiguousarray(voxels[:, :, index].T.astype(np.int16)).tobytes()
        pydicom.dcmwrite(path, image, enforce_file_format=True)
