"""Importer of the Sunnybrook Cardiac Data: cine MR with the left ventricle's contours, four diagnosis groups.

Radau et al., Evaluation Framework for Algorithms Segmenting Short Axis Cardiac MRI, The MIDAS Journal 2009,
http://hdl.handle.net/10380/3070 (CC0 1.0). Layouts that are read:

- NIfTI: ``cases.csv`` (case, patient, group, phase), ``images/`` and ``labels/``.
- The public distribution: DICOM images and contour text files; see ``sunnybrook_dicom``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.data.importers.base import (
    Collection,
    FilePair,
    SourceCase,
    Tick,
    count,
    folder_exists,
    listing,
    suffix_of,
    volumes_in,
)
from fedmedseg.data.importers.sunnybrook_dicom import CONTOURS, contour_folders, read_distribution

COLUMNS = ("case", "patient", "group")
CAVITY, MYOCARDIUM = "left_ventricle", "myocardium"


@dataclass(frozen=True, kw_only=True)
class SunnybrookImporter:
    """Reads either layout. ``myocardium`` adds label 2 where outer contours exist (public distribution only)."""

    myocardium: bool = False
    name: str = "sunnybrook"
    role: str | None = "cmr"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        if (source / "cases.csv").is_file():
            if self.myocardium:
                raise ConfigurationError(
                    "--myocardium", got="the NIfTI layout", expected="the distribution with outer contours"
                )
            return Collection(cases=_nifti_cases(source, tick), labels={1: CAVITY}, role=self.role)
        folders = contour_folders(source)
        if not folders:
            raise ConfigurationError(
                "sunnybrook",
                got=listing(source),
                expected=f"cases.csv with images/ and labels/, or DICOM with <patient>/{CONTOURS}/*.txt",
                remedy="unpack images and contours below one folder and point at that",
            )
        cases, skipped = read_distribution(source, folders, myocardium=self.myocardium, tick=tick)
        if not cases:
            raise DataError(
                "sunnybrook",
                got="; ".join(f"{reason} ({number})" for reason, number in count(skipped).items()),
                expected="at least one patient with images and contours of two phases",
                reason=Reason.NO_CASES,
            )
        labels = {1: CAVITY, 2: MYOCARDIUM} if self.myocardium else {1: CAVITY}
        return Collection(cases=cases, labels=labels, skipped=count(skipped), role=self.role)


def _nifti_cases(source: Path, tick: Tick) -> list[SourceCase]:
    for folder in ("images", "labels"):
        if not (source / folder).is_dir():
            raise ConfigurationError("sunnybrook", got=listing(source), expected=f"{folder}/ beside cases.csv")
    images, labels = volumes_in(source / "images"), volumes_in(source / "labels")
    with open(source / "cases.csv", newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise ConfigurationError(
                "cases.csv", got=f"columns {reader.fieldnames}", expected=f"also {', '.join(missing)}"
            )
        rows = list(reader)
    cases: list[SourceCase] = []
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        name, patient, group = (str(row[column] or "").strip() for column in COLUMNS)
        if not (name and patient and group) or name in seen:
            raise ConfigurationError(f"cases.csv line {line}", got="an empty field or a case twice", expected="a case")
        if name not in images:
            raise ConfigurationError(
                f"cases.csv line {line}", got="a case without a file in images/", expected="images/<case>.nii.gz"
            )
        seen.add(name)
        pair = FilePair(image=images[name], label=labels.get(name))
        suffix = suffix_of(images[name]) or ".nii.gz"
        if pair.label is not None and suffix_of(pair.label) != suffix:
            raise ConfigurationError(f"cases.csv line {line}", got="image and label differ in kind", expected=suffix)
        cases.append(SourceCase(name=name, patient=patient, group=group, content=pair, suffix=suffix))
        tick(line - 1, len(rows))
    if not cases:
        raise DataError("cases.csv", got="no case", expected="at least one", reason=Reason.NO_CASES)
    return cases
