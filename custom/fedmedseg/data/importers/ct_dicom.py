"""Importer of CT as hospitals export it: a folder of DICOM files for each patient, every series a volume.

MONAI's reader (``monai.data.PydicomReader``) sorts and stacks the slices, and only where their headers describe one
even stack: it would close the gap that a missing slice leaves. Names and numbers of patients in the files are not read;
a patient is called as the folder is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason
from fedmedseg.data.geometry import Grid, corner_distance
from fedmedseg.data.importers.base import (
    Collection,
    SourceCase,
    Tick,
    count,
    folder_exists,
    listing,
    nifti,
    reading,
    suffix_of,
)
from fedmedseg.data.importers.beside import all_used, hearts_in, landmarks_in
from fedmedseg.data.importers.counting import label_voxels
from fedmedseg.data.importers.dicom import Slice, affine, read_header, read_slice

LEAST_SLICES = 8
"""A shorter series is a scout view or a test, no volume."""
SAME_MM = 0.05
"""Grids whose corners lie closer than this are one."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One even stack of CT slices, sorted by location, and the label that was drawn on it, on any turn of its grid."""

    slices: Sequence[Slice]
    label: Path | None = None

    @property
    def has_label(self) -> bool:
        """Whether a label file belongs to the stack."""
        return self.label is not None

    def volume_mm3(self) -> float:
        """Volume of the stack in cubic millimetres."""
        x, y = self.slices[0].shape
        return float(abs(np.linalg.det(affine(self.slices)[:3, :3])) * x * y * len(self.slices))

    def write(self, image: Path, label: Path | None, *, link: bool) -> None:
        """Write the stack as NIfTI in HU; there is nothing that could be linked."""
        import nibabel as nib

        voxels, placed = read_series(self.slices)
        limits = np.iinfo(np.int16)
        whole = bool((voxels == np.rint(voxels)).all()) and voxels.min() >= limits.min and voxels.max() <= limits.max
        nib.Nifti1Image(voxels.astype(np.int16 if whole else np.float32), placed).to_filename(image)
        if label is not None:
            if self.label is None:
                raise DataError("label", got="a case without label", expected="a labelled case")
            with reading(self.label):
                turned = _on_grid(nifti(self.label), voxels.shape, placed)
            nib.Nifti1Image(turned, placed).to_filename(label)


@dataclass(frozen=True, kw_only=True)
class CTDicomImporter:
    """``labels``, ``hearts`` and ``landmarks`` are folders with files named as the cases.

    A case is called as the patient's folder is; with several series in it, ``<folder>-1``, ``<folder>-2`` and so on in
    the order of their series numbers. Labels are maps of the study's numbers (1 calcification, 2 coronaries); all cases
    with a label mark the numbers that any of them has.
    """

    labels: Path | None = None
    hearts: Path | None = None
    landmarks: Path | None = None
    name: str = "ct_dicom"
    role: str | None = "cardiac_ct"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        folders = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        patients = folders if folders else [source]
        found: dict[str, tuple[str, list[Slice]]] = {}
        skipped: list[str] = []
        for done, patient in enumerate(patients, start=1):
            stacks = _stacks(patient, skipped)
            for place, stack in enumerate(stacks, start=1):
                name = patient.name if len(stacks) == 1 else f"{patient.name}-{place}"
                found[name] = (patient.name, stack)
            tick(done, len(patients))
        if not found:
            told = ", ".join(f"{reason} ({number})" for reason, number in count(skipped).items())
            raise ConfigurationError(
                "ct_dicom",
                got=f"no usable CT series in {listing(source)}" + (f"; {told}" if told else ""),
                expected=f"a folder for each patient with DICOM files, {LEAST_SLICES} slices or more to a series",
            )
        labels = _labels_in(self.labels) if self.labels else {}
        hearts = hearts_in(self.hearts) if self.hearts else {}
        points = landmarks_in(self.landmarks) if self.landmarks else {}
        for option, given in (("--labels", labels), ("--hearts", hearts), ("--landmarks", points)):
            all_used(option, given, set(found))
        # a number that no label of the folder has was not looked for
        marked = tuple(sorted({number for path in labels.values() for number in label_voxels(path)})) or None
        cases = [
            SourceCase(
                name=name,
                patient=patient,
                content=Series(slices=stack, label=labels.get(name)),
                annotated_labels=marked,
                landmarks=points.get(name),
                heart=hearts.get(name),
            )
            for name, (patient, stack) in found.items()
        ]
        return Collection(cases=cases, skipped=count(skipped), labels=NAMES if labels else {}, role=self.role)


NAMES = {1: "calcification", 2: "coronaries"}


def read_series(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """HU (X, Y, Z) float32 and the NIfTI affine of an even stack, by MONAI's reader.

    Raises:
        DataError: unreadable pixels, slices that are no even stack, or a reader that places them elsewhere than the
            headers do.
    """
    from monai.data import PydicomReader

    x, y = slices[0].shape
    stated = Grid((x, y, len(slices)), affine(slices))
    falling = _falls(slices)
    reader = PydicomReader(swap_ij=True, affine_lps_to_ras=True)
    with tempfile.TemporaryDirectory() as folder, reading(slices[0].path):
        # a folder is one series to the reader; the patient's own may hold several
        for place, one in enumerate(slices):
            (Path(folder) / f"{place:05d}.dcm").symlink_to(one.path.resolve())
        voxels, meta = reader.get_data(reader.read(folder))
    placed = np.asarray(meta["affine"], dtype=np.float64)
    if falling:
        # the reader goes by the numbers of the images, here against the direction of the locations
        voxels = voxels[:, :, ::-1]
        placed[:3, 3] += placed[:3, 2] * (len(slices) - 1)
        placed[:3, 2] *= -1
    if voxels.shape != stated.shape:
        raise DataError(
            "DICOM stack",
            got=f"{' x '.join(map(str, voxels.shape))} voxels, where its headers say "
            f"{' x '.join(map(str, stated.shape))}",
            expected="pixels of the size that the headers give",
        )
    apart = corner_distance(Grid(stated.shape, placed), stated)
    if apart > SAME_MM:
        raise DataError(
            "DICOM stack",
            got=f"a place {apart:.1f} mm from where its headers say: a position, orientation or spacing that is not "
            "valid DICOM, such as a number of more than 16 characters",
            expected="headers that every reader takes alike",
        )
    return np.ascontiguousarray(voxels, dtype=np.float32), stated.affine


def _falls(slices: Sequence[Slice]) -> bool:
    """Whether the numbers of the images fall with their locations.

    Raises:
        DataError: they do neither that nor rise, so that going by them would shuffle the slices.
    """
    numbers = [read_header(one.path, ["InstanceNumber"]).get("InstanceNumber") for one in slices]
    steps = [] if None in numbers else np.diff([int(number) for number in numbers]).tolist()
    if not steps or not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        raise DataError(
            "DICOM stack",
            got="image numbers that do not follow the slices' locations",
            expected="InstanceNumber rising or falling from slice to slice",
            remedy="export the series again",
        )
    return bool(steps[0] < 0)


def _stacks(folder: Path, skipped: list[str]) -> list[list[Slice]]:
    """The even CT stacks below a folder, by series number; what cannot be used is added to ``skipped``."""
    series: dict[tuple[int, str], list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = read_header(path, ["Modality", "SeriesInstanceUID", "SeriesNumber", "ImageType"])
        except FedMedSegError:
            skipped.append("no DICOM file")
            continue
        if header.get("Modality") != "CT":
            skipped.append("DICOM file of another modality than CT")
            continue
        number = str(header.get("SeriesNumber") or "0")
        # files whose numbers were taken out are told apart by their folders
        series.setdefault(
            (int(number) if number.isdigit() else 0, str(header.get("SeriesInstanceUID") or path.parent)), []
        ).append(path)
    stacks = []
    for key in sorted(series):
        if len(series[key]) < LEAST_SLICES:
            skipped.append(f"series of fewer than {LEAST_SLICES} slices")
            continue
        try:
            stack = sorted((read_slice(path) for path in series[key]), key=lambda one: one.location)
            affine(stack)
            _falls(stack)
        except DataError as error:
            skipped.append("series that is no even stack of slices" if error.field == "DICOM stack" else error.field)
            continue
        stacks.append(stack)
    return stacks


def _labels_in(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        suffix = suffix_of(path)
        if suffix and not path.name.startswith("."):
            found[path.name.removesuffix(suffix)] = path
    if not found:
        got = listing(folder) if folder.is_dir() else f"no folder at {folder}"
        raise ConfigurationError("--labels", got=got, expected="<case>.nii.gz for each case with a label")
    return found


def _on_grid(label: object, shape: Sequence[int], placed: np.ndarray) -> np.ndarray:
    """A label's voxels on the image's grid, of which its own may be a flip or a permutation: never resampled.

    Raises:
        DataError: the label lies on another grid.
    """
    import nibabel as nib
    from nibabel.orientations import io_orientation, ornt_transform

    source: nib.Nifti1Image = label  # type: ignore[assignment]
    turned = source.as_reoriented(ornt_transform(io_orientation(source.affine), io_orientation(placed)))
    values = np.asanyarray(turned.dataobj)
    x, y, z = shape
    wanted = Grid((x, y, z), placed)
    if values.shape != wanted.shape or corner_distance(Grid(wanted.shape, turned.affine), wanted) > SAME_MM:
        raise DataError(
            "label",
            got=f"a grid of {values.shape} voxels",
            expected=f"the image's grid of {tuple(shape)}, whatever its axes are called",
            remedy="export the label on the image it was drawn on",
            reason=Reason.DATA,
        )
    if not np.array_equal(values, np.rint(values)) or values.min() < 0 or values.max() > 254:
        raise DataError("label", got="values that are no label numbers", expected="whole numbers from 0 to 254")
    return values.astype(np.uint8)
