"""Importer of ACDC: cine MR with both ventricles and the myocardium at end-diastole and end-systole.

Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation and Diagnosis, IEEE
Transactions on Medical Imaging 2018; https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html. Layout as
handed out: ``training/`` and ``testing/``, or either by itself, with ``patient001/patient001_frame01.nii.gz``,
``patient001_frame01_gt.nii.gz``, ``Info.cfg`` (``Group``, ``ED``, ``ES``) and the whole series, which is not read. Its
labels are 1 right ventricle, 2 myocardium, 3 left ventricle; here they become ``CINE_LABELS``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.data.importers.base import Collection, SourceCase, Tick, count, folder_exists, listing, volumes_in
from fedmedseg.data.importers.frames import CINE_LABELS, FramePair

RENUMBERED = {3: 1, 2: 2, 1: 3}
_PATIENT = re.compile(r"patient\d{3}")
_FRAME = re.compile(r"patient\d{3}_frame\d{2}")


@dataclass(frozen=True, kw_only=True)
class ACDCImporter:
    """Two cases per patient, in groups by diagnosis (``Info.cfg``)."""

    name: str = "acdc"
    role: str | None = "cmr"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        places = [place for place in (source, source / "training", source / "testing") if place.is_dir()]
        patients = [
            path for place in places for path in place.iterdir() if path.is_dir() and _PATIENT.fullmatch(path.name)
        ]
        patients.sort(key=lambda path: path.name)
        if not patients:
            raise ConfigurationError(
                "acdc",
                got=listing(source),
                expected="training/ and testing/ with patient001/, patient002/, ...",
                remedy="unpack the archive and point at the folder that holds training/",
            )
        cases: list[SourceCase] = []
        skipped: list[str] = []
        for done, folder in enumerate(patients, start=1):
            volumes = volumes_in(folder)
            frames = [stem for stem in volumes if _FRAME.fullmatch(stem)]
            if not frames:
                skipped.append("patient without a single frame")
            for stem in frames:
                label = volumes.get(f"{stem}_gt")
                content = FramePair(image=volumes[stem], label=label, renumbered=RENUMBERED)
                suffix = volumes[stem].name.removeprefix(stem)
                cases.append(
                    SourceCase(name=stem, patient=folder.name, group=_group(folder), content=content, suffix=suffix)
                )
            tick(done, len(patients))
        if not cases:
            raise DataError("acdc", got="no frame", expected="patient001_frame01.nii.gz, ...", reason=Reason.NO_CASES)
        return Collection(cases=cases, labels=CINE_LABELS, skipped=count(skipped), role=self.role)


def _group(folder: Path) -> str | None:
    """The diagnosis in ``Info.cfg``, or None where the file is not there."""
    file = folder / "Info.cfg"
    if not file.is_file():
        return None
    found = re.search(r"^\s*Group\s*:\s*(\S+)\s*$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found else None
