"""Small public data sets made for the tests: a Decathlon task and a Sunnybrook distribution with known masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

LOCATIONS, PHASES, COLUMNS, ROWS = 5, 6, 24, 20
ROW = np.array([0.8, 0.6, 0.0])
COLUMN = np.array([0.0, 0.0, -1.0])
NORMAL = np.cross(ROW, COLUMN)
ORIGIN = np.array([-31.0, 17.0, 42.0])
STEP, ROW_SPACING, COLUMN_SPACING = 9.0, 1.5, 1.25
DIASTOLE, SYSTOLE = 5, 2
"""Phases, counted from 0, that carry contours."""


def number(location: int, phase: int) -> int:
    """The image's number in the series, as the scanner counts: location by location."""
    return location * PHASES + phase + 1


def box(location: int, phase: int) -> tuple[int, int, int, int]:
    """First and last column, first and last row of the cavity: larger at end-diastole."""
    half = 5 if phase == DIASTOLE else 3
    return 10 + location - half, 10 + location + half, 9 - half, 9 + half


def cavity(location: int, phase: int, grow: int = 0) -> np.ndarray:
    mask = np.zeros((COLUMNS, ROWS), bool)
    x0, x1, y0, y1 = box(location, phase)
    mask[x0 - grow : x1 + grow + 1, y0 - grow : y1 + grow + 1] = True
    return mask


def write_dicom(path: Path, location: int, phase: int, *, description: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    image.PatientName, image.SeriesDescription = "MARKER^NAME", description
    image.Rows, image.Columns = ROWS, COLUMNS
    image.PixelSpacing, image.SliceThickness = [ROW_SPACING, COLUMN_SPACING], 8.0
    image.ImageOrientationPatient = [*ROW, *COLUMN]
    image.ImagePositionPatient = [round(float(v), 6) for v in ORIGIN + location * STEP * NORMAL]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    # each pixel tells where it comes from
    grid = 1000 * location + 100 * phase + np.arange(ROWS)[:, None] + np.zeros(COLUMNS, int)
    image.PixelData = grid.astype("<i2").tobytes()
    pydicom.dcmwrite(path, image, enforce_file_format=True)


def write_contour(folder: Path, location: int, phase: int, kind: str, grow: int = 0) -> Path:
    """A closed box through the pixels' outer edges, a point every half pixel as in the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    x0, x1, y0, y1 = box(location, phase)
    left, right, top, bottom = x0 - grow - 0.5, x1 + grow + 0.5, y0 - grow - 0.5, y1 + grow + 0.5
    along = np.arange(0, right - left, 0.5)
    points = [(left + d, top) for d in along] + [(right, top + d) for d in np.arange(0, bottom - top, 0.5)]
    points += [(right - d, bottom) for d in along] + [(left, bottom - d) for d in np.arange(0, bottom - top, 0.5)]
    path = folder / f"IM-0001-{number(location, phase):04d}-{kind}contour-manual.txt"
    path.write_text("".join(f"{x:.2f} {y:.2f}\n" for x, y in points))
    return path


def write_contours(folder: Path) -> None:
    """Diastole: locations 1 to 4 with outer contours. Systole: locations 1 to 3 without."""
    for location in range(1, LOCATIONS):
        write_contour(folder, location, DIASTOLE, "i")
        write_contour(folder, location, DIASTOLE, "o", grow=2)
        write_contour(folder, location, DIASTOLE, "p1")
    for location in range(1, LOCATIONS - 1):
        write_contour(folder, location, SYSTOLE, "i")


def write_series(folder: Path, series: str, description: str) -> None:
    for location in range(LOCATIONS):
        for phase in range(PHASES):
            name = f"IM-{series}-{number(location, phase):04d}.dcm"
            write_dicom(folder / name, location, phase, description=description)


def contours_of(root: Path, patient: str) -> Path:
    return root / patient / "contours-manual" / "IRCCI-expert"


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """One patient as the challenge handed it out: DICOM/ and contours-manual/ below the patient's folder."""
    root = tmp_path / "challenge"
    write_series(root / "SC-HF-I-1" / "DICOM", "0001", "")
    write_contours(contours_of(root, "SC-HF-I-1"))
    return root


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """One patient as the Cardiac Atlas Project hands it out, with a long-axis series of the same numbers."""
    root = tmp_path / "atlas"
    study = root / "SCD_IMAGES_01" / "SCD0003701"
    write_series(study / "CINESAX_300", "0003", "CINESAX")
    write_series(study / "CINELAX_301", "0004", "CINELAX")
    write_contours(contours_of(root / "SCD_ManualContours", "SC-N-02"))
    (root / "scd_patientdata.csv").write_text("PatientID,OriginalID,Gender\nSCD0003701,SC-N-2,Male\n")
    return root


def write_volume(path: Path, voxels: np.ndarray, zoom: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(voxels, np.diag([zoom, zoom, zoom, 1.0])).to_filename(path)


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Path]:
    """Makes a Decathlon task with ``labelled`` training cases of growing size and ``unlabelled`` test images."""

    def make(labelled: int = 6, unlabelled: int = 2, channels: int = 1) -> Path:
        root = tmp_path / "Task04_Hippocampus"
        training, test = [], []
        for index in range(labelled + unlabelled):
            name = f"hippocampus_{index:03d}.nii.gz"
            shape = (6 + index, 6, 6) + ((channels,) if channels > 1 else ())
            image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
            if index < labelled:
                label = np.zeros(shape[:3], np.uint8)
                label[0, 0, : 1 + index], label[1, 0, 0] = 1, 2
                write_volume(root / "imagesTr" / name, image)
                write_volume(root / "labelsTr" / name, label)
                training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
            else:
                write_volume(root / "imagesTs" / name, image)
                test.append(f"./imagesTs/{name}")
        (root / "imagesTr" / "._hippocampus_000.nii.gz").write_bytes(b"resource fork")
        content = {
            "name": "Hippocampus",
            "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "modality": {str(channel): f"MR{channel}" for channel in range(channels)},
            "training": training,
            "test": test,
        }
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return make
