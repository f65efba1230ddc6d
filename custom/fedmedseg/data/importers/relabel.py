"""Label numbers of a public set as a study's: tumours merged into their organ, two kidneys joined."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.importers.base import Content, nifti, reading

_PAIR = re.compile(r"\s*(\d{1,3})\s*=\s*(\d{1,3})\s*")
LARGEST = 254


def parse_label_map(text: str) -> dict[int, int]:
    """``1=4,2=4``: what the files call 1 and 2 is the study's 4.

    >>> parse_label_map("1=4, 2=4")
    {1: 4, 2: 4}

    Raises:
        ConfigurationError: not of that form, a number twice, or one that is no label.
    """
    pairs = [_PAIR.fullmatch(part) for part in text.split(",")]
    numbers = [(int(pair[1]), int(pair[2])) for pair in pairs if pair is not None]
    sources = [source for source, _ in numbers]
    in_range = all(1 <= number <= LARGEST for pair in numbers for number in pair)
    if None in pairs or len(set(sources)) != len(sources) or not in_range:
        raise ConfigurationError(
            "--label-map",
            got=repr(text),
            expected=f"old=new pairs of numbers from 1 to {LARGEST}, each old one once, as in 1=4,2=4",
        )
    return dict(numbers)


def target_names(table: Mapping[int, int], names: Mapping[int, str]) -> dict[int, str]:
    """Names of the new numbers, each from the lowest old number that has one: an organ comes before its tumour."""
    found: dict[int, str] = {}
    for source in sorted(table):
        if source in names:
            found.setdefault(table[source], names[source])
    return dict(sorted(found.items()))


@dataclass(frozen=True, kw_only=True)
class Relabelled:
    """``content`` with its label's numbers replaced by those of ``table``.

    A number that ``table`` does not name is background where ``drop_others`` says so, and an error otherwise.
    """

    content: Content
    table: Mapping[int, int]
    drop_others: bool = False

    @property
    def has_label(self) -> bool:
        """Whether a label belongs to the image."""
        return self.content.has_label

    def volume_mm3(self) -> float:
        """Volume of the image's field of view in cubic millimetres."""
        return self.content.volume_mm3()

    def write(self, image: Path, label: Path | None, *, link: bool) -> None:
        """Write both; a hard link to the source's label is replaced by a file of its own.

        Raises:
            DataError: values that are no label numbers, or one that the table does not name.
        """
        self.content.write(image, label, link=link)
        if label is not None:
            self._relabel(label)

    def _relabel(self, path: Path) -> None:
        import nibabel as nib
        import numpy as np

        with reading(path):
            source = nifti(path)
            values = np.asanyarray(source.dataobj)
            whole = np.rint(values).astype(np.int64)
            if not np.array_equal(whole, values) or whole.min() < 0:
                raise DataError("label", got=f"{path.name} with values that are no label numbers", expected="numbers")
            unknown = sorted(set(np.unique(whole).tolist()) - {0, *self.table})
            if unknown and not self.drop_others:
                raise DataError(
                    "label",
                    got=f"{path.name} with label {unknown[0]}",
                    expected=f"one of {', '.join(map(str, sorted(self.table)))}",
                    remedy="name it in --label-map",
                )
            changed = np.zeros(whole.shape, dtype=np.uint8)
            for old, new in self.table.items():
                changed[whole == old] = new
            made = nib.Nifti1Image(changed, source.affine, source.header)
            made.header.set_data_dtype(np.uint8)
            made.header["scl_slope"], made.header["scl_inter"] = 1.0, 0.0
            # never through a hard link into the source
            path.unlink()
            made.to_filename(path)
