"""Importer of M&Ms: cine MR of several centres and vendors, both ventricles and the myocardium.

Campello et al., Multi-Centre, Multi-Vendor and Multi-Disease Cardiac Segmentation: The M&Ms Challenge, IEEE
Transactions on Medical Imaging 2021; https://www.ub.edu/mnms/. Layout as handed out: ``Training/Labeled``,
``Training/Unlabeled``, ``Validation`` and ``Testing``, each with ``A0S9V9/A0S9V9_sa.nii.gz`` (four axes, the last is
time) and ``A0S9V9_sa_gt.nii.gz``, and a table ``*opendataset*.csv`` with the columns ``External code``, ``Centre``,
``ED`` and ``ES`` (frames, counted from 0). Labels are 1 left ventricle, 2 myocardium, 3 right ventricle, drawn at ED
and ES alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.data.importers.base import Collection, SourceCase, Tick, count, folder_exists, listing, volumes_in
from fedmedseg.data.importers.frames import CINE_LABELS, FramePair

RENUMBERED = {1: 1, 2: 2, 3: 3}
CODE, CENTRE, PHASES = "External code", "Centre", ("ED", "ES")
PLACES = (("Training", "Labeled"), ("Training", "Unlabeled"), ("Validation",), ("Testing",))


@dataclass(frozen=True, kw_only=True)
class MnMsImporter:
    """Two cases per patient, in groups by centre: ``centre-1``, ``centre-2``, ..."""

    name: str = "mnms"
    role: str | None = "cmr"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        rows = _rows(source)
        folders = {
            path.name: path
            for place in PLACES
            if source.joinpath(*place).is_dir()
            for path in sorted(source.joinpath(*place).iterdir())
            if path.is_dir()
        }
        cases: list[SourceCase] = []
        skipped: list[str] = []
        for done, (code, row) in enumerate(rows.items(), start=1):
            volumes = volumes_in(folders[code]) if code in folders else {}
            image, label = volumes.get(f"{code}_sa"), volumes.get(f"{code}_sa_gt")
            if image is None:
                skipped.append("patient of the table without images")
                continue
            for phase in PHASES:
                content = FramePair(image=image, label=label, frame=row[1][phase], renumbered=RENUMBERED)
                name = f"{code}_{phase.lower()}"
                cases.append(SourceCase(name=name, patient=code, group=f"centre-{row[0]}", content=content))
            tick(done, len(rows))
        if not cases:
            raise DataError("mnms", got="no image", expected="A0S9V9/A0S9V9_sa.nii.gz, ...", reason=Reason.NO_CASES)
        return Collection(cases=cases, labels=CINE_LABELS, skipped=count(skipped), role=self.role)


def _rows(source: Path) -> dict[str, tuple[str, dict[str, int]]]:
    """Code of each patient -> its centre, and its two frames."""
    tables = sorted(path for path in source.glob("*.csv") if "opendataset" in path.name.lower())
    if len(tables) != 1:
        raise ConfigurationError(
            "mnms",
            got=listing(source),
            expected="one table *opendataset*.csv beside Training/, Validation/ and Testing/",
            remedy="unpack the archive and point at the folder that holds the table",
        )
    with open(tables[0], newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in (CODE, CENTRE, *PHASES) if name not in (reader.fieldnames or [])]
        if missing:
            raise ConfigurationError(
                tables[0].name, got=f"columns {reader.fieldnames}", expected=f"also {', '.join(missing)}"
            )
        rows: dict[str, tuple[str, dict[str, int]]] = {}
        for line, row in enumerate(reader, start=2):
            try:
                rows[row[CODE].strip()] = row[CENTRE].strip(), {phase: int(row[phase]) for phase in PHASES}
            except (AttributeError, TypeError, ValueError):
                raise ConfigurationError(
                    f"{tables[0].name} line {line}", got="a field that is empty or no number", expected="a patient"
                ) from None
    return rows
