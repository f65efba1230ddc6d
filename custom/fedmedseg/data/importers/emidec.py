"""Importer of EMIDEC: late-enhancement MR with infarction and no-reflow.

Lalande et al., Emidec: A Database Usable for the Automatic Evaluation of Myocardial Infarction from
Delayed-Enhancement Cardiac MRI, Data 2020; http://emidec.com/dataset. Layout as handed out (``emidec-dataset-1.0.1``):
``Case_N006`` (normal) and ``Case_P001`` (pathological), each with ``Images/Case_N006.nii.gz`` and, where it is
labelled, ``Contours/Case_N006.nii.gz``. Labels are 1 cavity, 2 normal myocardium, 3 infarction, 4 no-reflow, as in the
challenge's own evaluation code, and stay so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.data.importers.base import Collection, SourceCase, Tick, count, folder_exists, listing, volumes_in
from fedmedseg.data.importers.frames import CAVITY, MYOCARDIUM, FramePair

LABELS = {1: CAVITY, 2: MYOCARDIUM, 3: "infarct", 4: "no_reflow"}
RENUMBERED = {number: number for number in LABELS}
_CASE = re.compile(r"Case_[NP]?\d+")


@dataclass(frozen=True, kw_only=True)
class EMIDECImporter:
    """One case per patient, all in one group: the set comes from one hospital."""

    name: str = "emidec"
    role: str | None = "lge"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        folders = sorted(path for path in source.iterdir() if path.is_dir() and _CASE.fullmatch(path.name))
        if not folders:
            raise ConfigurationError(
                "emidec",
                got=listing(source),
                expected="Case_N006/, Case_P001/, ... with Images/ and Contours/",
                remedy="unpack the archive and point at emidec-dataset-1.0.1",
            )
        cases: list[SourceCase] = []
        skipped: list[str] = []
        for done, folder in enumerate(folders, start=1):
            images, labels = (_volumes(folder / place) for place in ("Images", "Contours"))
            image = images.get(folder.name)
            if image is None:
                skipped.append("case without an image")
            else:
                content = FramePair(image=image, label=labels.get(folder.name), renumbered=RENUMBERED)
                suffix = image.name.removeprefix(folder.name)
                cases.append(
                    SourceCase(name=folder.name, patient=folder.name, group="emidec", content=content, suffix=suffix)
                )
            tick(done, len(folders))
        if not cases:
            raise DataError("emidec", got="no image", expected="Images/Case_N006.nii.gz", reason=Reason.NO_CASES)
        return Collection(cases=cases, labels=LABELS, skipped=count(skipped), role=self.role)


def _volumes(folder: Path) -> dict[str, Path]:
    return volumes_in(folder) if folder.is_dir() else {}
