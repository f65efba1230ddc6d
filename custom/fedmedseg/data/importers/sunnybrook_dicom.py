"""The public distribution of the Sunnybrook Cardiac Data: DICOM short-axis cines and contours as text.

What is relied upon, and where it is described:

- Contours lie in ``<patient>/contours-manual/IRCCI-expert/IM-0001-NNNN-{i,o,p1,p2}contour-manual.txt``
  (``i`` endocardial, ``o`` epicardial, ``p1``/``p2`` papillary muscles, which the cavity includes), one point
  ``x y`` in pixels per line. The data set's own page, https://smial.sri.utoronto.ca/LV_Challenge/Data.html,
  tells that endo- and epicardial contours were drawn at end-diastole and end-systole.
- ``NNNN`` is the image's number within the short-axis series. The series number in the name (always 0001)
  is not that of the images: https://github.com/vuptran/cardiac-segmentation/issues/5.
- The Cardiac Atlas Project (http://cardiacatlas.org/standards/sunnybrook-cardiac-data) hands the images out as
  ``SCD0000101/CINESAX_300/IM-0003-0048.dcm`` with ``scd_patientdata.csv``, whose ``PatientID`` and
  ``OriginalID`` join them to the contours' folders (there with a two-digit number: SC-HF-I-1 is SC-HF-I-01).
  The challenge handed them out as ``SC-HF-I-1/DICOM/IM-0001-0048.dcm`` or without ``DICOM``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.importers import dicom
from fedmedseg.data.importers.base import SourceCase, Tick
from fedmedseg.data.importers.contours import area, fill, read_contour

CONTOURS = "contours-manual/IRCCI-expert"
PATIENT_TABLE = "scd_patientdata.csv"
_ORIGINAL = re.compile(r"SC-(HF-I|HF-NI|HYP|N)-0*(\d+)", re.IGNORECASE)
_CONTOUR = re.compile(r"IM-\d+-(\d+)-([io])contour-manual\.txt", re.IGNORECASE)
_IMAGE = re.compile(r"IM-(\d+)-(\d+)\.dcm", re.IGNORECASE)


Series = tuple[Path, str]
"""Folder and series number, as the image files are named."""


class Unusable(Exception):
    """A patient or phase that is left out; the text is counted and names nobody."""


@dataclass(frozen=True, kw_only=True)
class Contoured:
    """One image with an inner contour and, where it was drawn, an outer one."""

    geometry: dicom.Slice
    station: int
    """Number of its location, counted along the slice normal over all locations of the series."""
    phase: int
    """Place in the heart cycle: the image's rank among those of its location."""
    inner: Path
    outer: Path | None
    cavity: float
    """Area inside the inner contour in square pixels."""


@dataclass(frozen=True, kw_only=True)
class ContouredStack:
    """Content built from DICOM slices and their contours."""

    slices: tuple[Contoured, ...]
    myocardium: bool
    has_label: bool = True

    def write(self, image: Path, label: Path | None, *, link: bool) -> None:
        """Write volume and mask. There is no file to link: ``link`` changes nothing here."""
        import nibabel as nib

        geometry = [one.geometry for one in self.slices]
        matrix = dicom.affine(geometry)
        nib.Nifti1Image(dicom.read_pixels(geometry), matrix).to_filename(image)
        if label is not None:
            nib.Nifti1Image(self.mask(), matrix).to_filename(label)

    def mask(self) -> np.ndarray:
        """uint8 (X, Y, Z): 1 inside the inner contour, 2 between the contours where ``myocardium`` is asked for."""
        planes = []
        for one in self.slices:
            plane = np.zeros(one.geometry.shape, dtype=np.uint8)
            if self.myocardium and one.outer is not None:
                plane[fill(read_contour(one.outer), one.geometry.shape)] = 2
            plane[fill(read_contour(one.inner), one.geometry.shape)] = 1
            planes.append(plane)
        return np.stack(planes, axis=-1)

    def volume_mm3(self) -> float:
        """Field of view in mm3."""
        geometry = [one.geometry for one in self.slices]
        voxel = abs(float(np.linalg.det(dicom.affine(geometry)[:3, :3])))
        return voxel * geometry[0].shape[0] * geometry[0].shape[1] * len(geometry)


def contour_folders(source: Path) -> dict[str, Path]:
    """Original patient name (``SC-HF-I-01``) -> folder of its contours."""
    found: dict[str, Path] = {}
    for folder in sorted(source.rglob("IRCCI-expert")):
        patient = original_name(folder.parent.parent.name)
        if folder.is_dir() and folder.parent.name == "contours-manual" and patient:
            if patient in found:
                raise ConfigurationError(
                    "sunnybrook", got="contours of one patient in two folders", expected="one copy of the data set"
                )
            found[patient] = folder
    return found


def original_name(text: str) -> str | None:
    """``SC-HF-I-1`` and ``sc-hf-i-01`` -> ``SC-HF-I-01``; None for any other name."""
    match = _ORIGINAL.fullmatch(text.strip())
    return f"SC-{match[1].upper()}-{int(match[2]):02d}" if match else None


def read_distribution(
    source: Path, contours: Mapping[str, Path], *, myocardium: bool, tick: Tick
) -> tuple[list[SourceCase], list[str]]:
    """All cases (two phases a patient) and, for each patient or phase left out, the reason.

    Raises:
        ConfigurationError: ``scd_patientdata.csv`` is damaged.
    """
    series = _series(source)
    cases: list[SourceCase] = []
    skipped: list[str] = []
    for done, (patient, folder) in enumerate(sorted(contours.items()), start=1):
        try:
            found = _patient_cases(patient, folder, series.get(patient, {}), myocardium, skipped)
            cases += found
        except Unusable as error:
            skipped.append(str(error))
        except DataError as error:
            skipped.append(f"{error.field} cannot be read")
        tick(done, len(contours))
    return cases, skipped


def split_phases(contoured: Sequence[Contoured], cycle: int) -> dict[str, list[Contoured]]:
    """``ED`` and ``ES`` -> one image per location, sorted by location.

    The two phases contoured at most locations are the patient's phases; an image at another phase goes to
    the nearer of them in the heart cycle where that place is free. The phase with the larger cavity at the
    locations which both have is end-diastole.

    Raises:
        Unusable: contours at one phase alone, or no location with both.
    """
    at: dict[int, list[Contoured]] = {}
    for one in contoured:
        at.setdefault(one.phase, []).append(one)
    if len(at) < 2:
        raise Unusable("contours at one heart phase alone")
    main = sorted(at, key=lambda phase: (-len(at[phase]), phase))[:2]
    slots = {phase: {one.station: one for one in at[phase]} for phase in main}
    for phase in sorted(set(at) - set(main)):
        nearer = min(main, key=lambda other: min((phase - other) % cycle, (other - phase) % cycle))
        for one in at[phase]:
            slots[nearer].setdefault(one.station, one)
    first, second = (slots[phase] for phase in main)
    shared = sorted(set(first) & set(second))
    if not shared:
        raise Unusable("no slice contoured at both heart phases")
    larger = sum(first[place].cavity - second[place].cavity for place in shared) >= 0
    diastole, systole = (first, second) if larger else (second, first)
    return {name: [slot[place] for place in sorted(slot)] for name, slot in (("ED", diastole), ("ES", systole))}


def longest_run(stack: Sequence[Contoured]) -> list[Contoured]:
    """The longest run of neighbouring slices: one without contours between two others is not background."""
    runs: list[list[Contoured]] = [[stack[0]]]
    for before, after in pairwise(stack):
        if after.station == before.station + 1:
            runs[-1].append(after)
        else:
            runs.append([after])
    return max(runs, key=len)


def _patient_cases(
    patient: str,
    folder: Path,
    series: Mapping[Series, Mapping[int, Path]],
    myocardium: bool,
    skipped: list[str],
) -> list[SourceCase]:
    files: dict[str, dict[int, Path]] = {"i": {}, "o": {}}
    for path in sorted(folder.iterdir()):
        match = _CONTOUR.fullmatch(path.name)
        if match:
            files[match[2].lower()][int(match[1])] = path
    if not files["i"]:
        raise Unusable("no inner contour")
    images = _short_axis(series, set(files["i"]))
    geometry = {number: dicom.read_slice(path) for number, path in sorted(images.items())}
    places = stations(geometry)
    station_of = {number: index for index, place in enumerate(places) for number in place}
    phase_of = {number: phase for place in places for phase, number in enumerate(place)}
    contoured = [
        Contoured(
            geometry=geometry[number],
            station=station_of[number],
            phase=phase_of[number],
            inner=inner,
            outer=files["o"].get(number),
            cavity=area(read_contour(inner)),
        )
        for number, inner in sorted(files["i"].items())
    ]
    cases = []
    for phase, stack in split_phases(contoured, max(map(len, places))).items():
        run = longest_run(stack)
        if len(run) < len(stack):
            skipped.extend(["slice beyond a gap in the contours"] * (len(stack) - len(run)))
        dicom.affine([one.geometry for one in run])
        with_outer = myocardium and all(one.outer is not None for one in run)
        cases.append(
            SourceCase(
                name=f"{patient}_{phase}",
                patient=patient,
                group=patient[3:].rpartition("-")[0],
                content=ContouredStack(slices=tuple(run), myocardium=with_outer),
                annotated_labels=(1,) if myocardium and not with_outer else None,
            )
        )
    return cases


def stations(geometry: Mapping[int, dicom.Slice]) -> list[list[int]]:
    """Image numbers per slice location, locations along the normal, numbers in the order of the heart cycle."""
    places: list[list[int]] = []
    for number in sorted(geometry, key=lambda number: (geometry[number].location, number)):
        location = geometry[number].location
        if places and location - geometry[places[-1][0]].location < dicom.SAME_LOCATION_MM:
            places[-1].append(number)
        else:
            places.append([number])
    return [sorted(place) for place in places]


def _series(source: Path) -> dict[str, dict[Series, dict[int, Path]]]:
    """Original patient name -> series (folder, series number in the file names) -> image number -> file."""
    original = _patient_table(source)
    found: dict[str, dict[Series, dict[int, Path]]] = {}
    for path in sorted(source.rglob("*.[dD][cC][mM]")):
        match = _IMAGE.fullmatch(path.name)
        if not match:
            continue
        parents = [parent.name for parent in path.relative_to(source).parents]
        names = [original.get(name.upper()) or original_name(name) for name in parents if name]
        patient = next((name for name in names if name), None)
        if patient:
            images = found.setdefault(patient, {}).setdefault((path.parent, match[1]), {})
            images[int(match[2])] = path
    return found


def _patient_table(source: Path) -> dict[str, str]:
    """``SCD0000101`` -> ``SC-HF-I-01`` from the distribution's table; empty where there is none."""
    tables = sorted(source.rglob(PATIENT_TABLE))
    if not tables:
        return {}
    with open(tables[0], newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if not {"PatientID", "OriginalID"} <= set(rows.fieldnames or []):
            raise ConfigurationError(
                PATIENT_TABLE, got=f"columns {rows.fieldnames}", expected="PatientID and OriginalID"
            )
        pairs = [(str(row["PatientID"]).strip().upper(), original_name(str(row["OriginalID"]))) for row in rows]
    return {patient: name for patient, name in pairs if name}


def _short_axis(series: Mapping[Series, Mapping[int, Path]], wanted: set[int]) -> Mapping[int, Path]:
    """The one series that the contours' numbers belong to.

    Raises:
        Unusable: no images, or no series or several could be meant.
    """
    if not series:
        raise Unusable("no images")
    fitting = {key: images for key, images in series.items() if wanted <= set(images)}
    if len(fitting) > 1:
        named = {key: images for key, images in fitting.items() if _says_short_axis(key[0], images)}
        fitting = named or fitting
    if not fitting:
        raise Unusable("no series has every contoured image")
    if len(fitting) > 1:
        raise Unusable("several series could carry the contours")
    return next(iter(fitting.values()))


def _says_short_axis(folder: Path, images: Mapping[int, Path]) -> bool:
    header = dicom.read_header(images[min(images)], ["SeriesDescription"])
    described = str(header.get("SeriesDescription", ""))
    return "CINESAX" in f"{described} {folder.name}".upper().replace(" ", "")
