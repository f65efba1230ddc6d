"""Importer of the TotalSegmentator data set: CT volumes with the heart's structures, for conditioning and as a task.

Wasserthal et al., Radiology: Artificial Intelligence 2023; version 1 of the data set, doi:10.5281/zenodo.6802613.
Layout: ``s0000/ct.nii.gz`` with one mask for each structure in ``s0000/segmentations``; the seven of the heart are
read. Volumes in which no chamber has a voxel are left out. Version 2 has the heart as one structure, which is not
enough here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.importers.base import (
    Collection,
    FilePair,
    SourceCase,
    Tick,
    count,
    folder_exists,
    listing,
    nifti,
    reading,
)
from fedmedseg.data.importers.beside import STRUCTURES, heart_in

IMAGE = "ct.nii.gz"


@dataclass(frozen=True, kw_only=True)
class TotalSegmentatorImporter:
    """Every case is unlabelled in the sense of a data list, and has the file ``heart``."""

    name: str = "totalsegmentator"
    role: str | None = "cardiac_ct"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        folders = sorted(path.parent for path in source.glob(f"s*/{IMAGE}"))
        if not folders:
            raise ConfigurationError(
                "totalsegmentator",
                got=listing(source),
                expected=f"s0000/{IMAGE} and s0000/segmentations/{STRUCTURES[0]}.nii.gz and so on",
                remedy="point at the folder that the archive of version 1 unpacks to",
            )
        cases, skipped = [], []
        for done, folder in enumerate(folders, start=1):
            heart = heart_in(folder / "segmentations")
            if heart is None:
                skipped.append("no mask of the heart's structures")
            elif not _shows_heart(folder / "segmentations"):
                skipped.append("the scan does not show the heart")
            else:
                cases.append(
                    SourceCase(
                        name=folder.name, patient=folder.name, content=FilePair(image=folder / IMAGE), heart=heart
                    )
                )
            tick(done, len(folders))
        if not cases:
            raise ConfigurationError(
                "totalsegmentator",
                got=f"{len(folders)} volumes, none with the heart's chambers",
                expected="the data set's first version, whose segmentations name them",
            )
        return Collection(cases=cases, skipped=count(skipped), role=self.role)


def _shows_heart(folder: Path) -> bool:
    import numpy as np

    for name in STRUCTURES[:5]:
        path = folder / f"{name}.nii.gz"
        if path.is_file():
            with reading(path):
                if np.any(np.asanyarray(nifti(path).dataobj)):
                    return True
    return False
