"""Frames of cine series and label maps of another order: what the importers of cardiac sets write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import DataError
from fedmedseg.data.importers.base import nifti, place, reading

CAVITY, MYOCARDIUM, RIGHT = "left_ventricle", "myocardium", "right_ventricle"
CINE_LABELS = {1: CAVITY, 2: MYOCARDIUM, 3: RIGHT}
"""The one label map of cine sets, whatever the order in which a set numbers them."""


@dataclass(frozen=True, kw_only=True)
class FramePair:
    """Content in NIfTI files: one ``frame`` of a series (None: a single volume), its label numbers ``renumbered``.

    A number that ``renumbered`` does not hold, other than 0, is an error: it means another set, or a later release.
    """

    image: Path
    label: Path | None = None
    frame: int | None = None
    renumbered: Mapping[int, int] = field(default_factory=dict)

    @property
    def has_label(self) -> bool:
        """Whether a label file belongs to the image."""
        return self.label is not None

    def write(self, image: Path, label: Path | None, *, link: bool) -> None:
        """Copy or hard-link what needs no change; write the rest anew."""
        if self.frame is None:
            place(self.image, image, link=link)
        else:
            with reading(self.image):
                _frame(self.image, self.frame).to_filename(image)
        if label is None:
            return
        if self.label is None:
            raise DataError("label", got="a case without label", expected="a labelled case")
        self._write_label(self.label, label)

    def volume_mm3(self) -> float:
        """Read from the header alone."""
        import numpy as np

        with reading(self.image):
            header = nifti(self.image).header
            return float(np.prod(header.get_data_shape()[:3]) * np.prod(header.get_zooms()[:3]))

    def _write_label(self, source: Path, target: Path) -> None:
        import nibabel as nib
        import numpy as np

        with reading(source):
            volume = nifti(source) if self.frame is None else _frame(source, self.frame)
            numbers = np.asanyarray(volume.dataobj)
            table = {0: 0, **self.renumbered}
            found = np.unique(numbers)
            unknown = [value for value in found.tolist() if value not in table]
            if unknown:
                raise DataError(
                    "label",
                    got=f"{source.name} with the value {unknown[0]:g}",
                    expected=f"values among {', '.join(map(str, sorted(table)))}",
                    remedy="see whether the source folder is this data set",
                )
            changed = np.zeros(numbers.shape, dtype=np.uint8)
            for old, new in self.renumbered.items():
                changed[numbers == old] = new
            nib.Nifti1Image(changed, volume.affine).to_filename(target)


def _frame(path: Path, frame: int) -> Any:
    """One frame of a series, as an image of three axes."""
    source = nifti(path)
    if len(source.shape) != 4 or not 0 <= frame < source.shape[3]:
        raise DataError(
            "frame", got=f"{frame} of {path.name} with shape {source.shape}", expected="a frame that the series has"
        )
    return source.slicer[..., frame]
