"""What may lie beside the images of a CT set: points, and the heart's structures as TotalSegmentator writes them.

Wasserthal et al., "TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images", Radiology:
Artificial Intelligence 2023, https://doi.org/10.1148/ryai.230024. Its task heartchambers_highres has seven classes, by
its own class map: 1 heart_myocardium, 2 heart_atrium_left, 3 heart_ventricle_left, 4 heart_atrium_right, 5
heart_ventricle_right, 6 aorta, 7 pulmonary_artery. The command writes one file of them with ``--ml``, else a folder
with one mask for each class under these names; the first version of the paper's data set has such a folder,
``segmentations``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.checks import CaseRejected
from fedmedseg.data.importers.base import listing, nifti, reading, suffix_of
from fedmedseg.data.landmarks import read_landmarks

STRUCTURES = (
    "heart_myocardium",
    "heart_atrium_left",
    "heart_ventricle_left",
    "heart_atrium_right",
    "heart_ventricle_right",
    "aorta",
    "pulmonary_artery",
)


@dataclass(frozen=True, kw_only=True)
class HeartMap:
    """The heart's structures of one case: a file of label numbers, or a folder of masks."""

    source: Path

    def write(self, target: Path) -> None:
        """Write them as one map of 0 to 7, compressed, on their own grid.

        Raises:
            DataError: unreadable, other label numbers, or masks that lie on different grids.
        """
        import nibabel as nib
        import numpy as np

        if self.source.is_file():
            with reading(self.source):
                first = nifti(self.source)
                whole = np.asanyarray(first.dataobj)
        else:
            paths = {number: _mask(self.source, name) for number, name in enumerate(STRUCTURES, start=1)}
            images = {}
            for number, path in paths.items():
                if path is not None:
                    with reading(path):
                        images[number] = (nifti(path), np.asanyarray(nifti(path).dataobj))
            first, mask = next(iter(images.values()))
            whole = np.zeros(mask.shape, dtype=np.uint8)
            for number, (image, part) in images.items():
                if part.shape != whole.shape or not np.allclose(image.affine, first.affine, atol=1e-3):
                    raise DataError("hearts", got=f"masks of several grids in {self.source.name}", expected="one grid")
                whole[part > 0] = number
        if not np.isin(whole, np.arange(len(STRUCTURES) + 1)).all():
            raise DataError(
                "hearts",
                got=f"{self.source.name} with other values than 0 to {len(STRUCTURES)}",
                expected="what TotalSegmentator's task heartchambers_highres writes",
                remedy="run TotalSegmentator with -ta heartchambers_highres",
            )
        nib.Nifti1Image(whole.astype(np.uint8), first.affine).to_filename(target)


def hearts_in(folder: Path) -> dict[str, HeartMap]:
    """Name of a case -> its map: ``<case>.nii.gz``, or a folder ``<case>`` that holds masks.

    Raises:
        ConfigurationError: nothing of the kind.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        suffix = suffix_of(path)
        if path.name.startswith("."):
            continue
        if path.is_file() and suffix:
            found[path.name.removesuffix(suffix)] = HeartMap(source=path)
        elif path.is_dir() and (heart := heart_in(path)) is not None:
            found[path.name] = heart
    if not found:
        raise ConfigurationError(
            "--hearts",
            got=listing(folder) if folder.is_dir() else f"no folder at {folder}",
            expected="<case>.nii.gz, or a folder <case> with heart_myocardium.nii.gz and so on, for each case",
        )
    return found


def heart_in(folder: Path) -> HeartMap | None:
    """The map that lies in a folder of masks; None where not one of the seven is there."""
    return HeartMap(source=folder) if any(_mask(folder, name) for name in STRUCTURES) else None


def landmarks_in(folder: Path) -> dict[str, Path]:
    """Name of a case -> its file of points, each of which is read.

    Raises:
        ConfigurationError: no such file.
        DataError: one that cannot be read (``data.landmarks`` says how they are written).
    """
    found = {path.stem: path for path in sorted(folder.glob("*.json"))} if folder.is_dir() else {}
    if not found:
        got = listing(folder) if folder.is_dir() else f"no folder at {folder}"
        raise ConfigurationError("--landmarks", got=got, expected="<case>.json for each case with points")
    for path in found.values():
        try:
            read_landmarks(path)
        except CaseRejected as rejected:
            raise DataError("--landmarks", got=f"{path.name}: {rejected.reason}", expected="points by name") from None
    return found


def all_used(option: str, found: Mapping[str, object], cases: set[str]) -> None:
    """Refuse files that belong to no case: a misspelt name would lose them silently.

    Raises:
        ConfigurationError: names the first one, and what cases are called.
    """
    strays = sorted(set(found) - cases)
    if strays:
        raise ConfigurationError(
            option,
            got=f"{len(strays)} of {len(found)} that belong to no case, the first {strays[0]!r}",
            expected=f"names of cases, as {sorted(cases)[0]!r}" if cases else "names of cases",
        )


def _mask(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.nii.gz", folder / f"{name}.nii") if path.is_file()), None)
