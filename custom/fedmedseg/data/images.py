"""The images that somebody points at, without a data list: NIfTI files and DICOM series, one of them or a folder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.data.importers.base import suffix_of
from fedmedseg.data.importers.ct_dicom import Series
from fedmedseg.data.importers.dicom import Slice, affine, read_header, read_slice

CLAIMED = (".dcm", ".ima")
"""Endings of files that say they are DICOM: one that is not is damaged, while any other file is passed over."""
MODALITIES = {"CT": "ct", "MR": "mr"}
"""What DICOM calls the modalities of studies."""
_TAGS = ["Modality", "SeriesInstanceUID", "SeriesNumber"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image: a file, or the slices of a series; or why it is neither."""

    name: str
    """What its outputs are called: its path below the folder, without an ending."""
    file: Path | None = None
    slices: Sequence[Slice] = ()
    modality: str | None = None
    """``ct`` or ``mr`` where the files say so."""
    fault: str | None = None

    def as_nifti(self, folder: Path) -> Path:
        """The image as a NIfTI file: itself, or written into ``folder``, with nothing of the DICOM headers but place.

        Raises:
            DataError: pixels that cannot be read, or slices that are no even stack.
        """
        if self.file is not None:
            return self.file
        written = folder / "series.nii.gz"
        Series(slices=self.slices).write(written, None, link=False)
        return written


@dataclass(frozen=True)
class Found:
    """What lies at a place."""

    sources: list[Source]
    """By name."""
    passed_over: list[Path] = field(default_factory=list)
    """Files that neither are images nor claim to be."""


def images_at(place: Path) -> Found:
    """The images in a file or, at any depth, in a folder. Hidden files and folders are not looked at.

    Raises:
        ConfigurationError: nothing there, no image among it, or two images of one name.
    """
    if place.is_file():
        if not suffix_of(place):
            raise ConfigurationError(
                "IMAGE",
                got=place.name,
                expected="a file that ends with .nii.gz or .nii, or a folder",
                remedy="of a DICOM series name the folder",
            )
        return Found([_volume(place, place.parent)])
    if not place.is_dir():
        raise ConfigurationError("IMAGE", got=f"nothing at {place}", expected="a NIfTI file or a folder of images")
    # a link to nothing is a file that cannot be read
    found = (path for path in sorted(place.rglob("*")) if path.is_file() or (path.is_symlink() and not path.exists()))
    files = [path for path in found if not _hidden(path, place)]
    volumes = [path for path in files if suffix_of(path)]
    series, damaged, passed_over = _series([path for path in files if not suffix_of(path)], place)
    sources = sorted([*(_volume(path, place) for path in volumes), *series, *damaged], key=lambda one: one.name)
    if not sources:
        raise ConfigurationError(
            "IMAGE",
            got=f"{len(files)} files at {place}, none of them an image",
            expected="NIfTI files (.nii.gz, .nii) or DICOM series",
        )
    for one, other in itertools.pairwise(sources):
        if one.name == other.name:
            raise ConfigurationError(
                "IMAGE", got=f"two images that are called {one.name}", expected="images with names of their own"
            )
    return Found(sources, passed_over)


def _hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(place).parts)


def _volume(path: Path, place: Path) -> Source:
    return Source(name=path.relative_to(place).as_posix().removesuffix(suffix_of(path) or ""), file=path)


def _series(files: Sequence[Path], place: Path) -> tuple[list[Source], list[Source], list[Path]]:
    """The DICOM series among ``files``, those that are damaged, and files of another kind."""
    groups: dict[tuple[Path, int, str], list[tuple[Path, Any]]] = {}
    damaged, passed_over = [], []
    for path in files:
        try:
            header = read_header(path, _TAGS)
        except FedMedSegError:
            if path.suffix.lower() in CLAIMED:
                name = path.relative_to(place).as_posix()
                damaged.append(Source(name=name, fault="no DICOM file, whatever its ending says"))
            else:
                passed_over.append(path)
            continue
        number = str(header.get("SeriesNumber") or "0")
        key = (path.parent, int(number) if number.isdigit() else 0, str(header.get("SeriesInstanceUID") or ""))
        groups.setdefault(key, []).append((path, header.get("Modality")))
    found = []
    for folder in dict.fromkeys(folder for folder, *_ in sorted(groups)):
        keys = [key for key in sorted(groups) if key[0] == folder]
        name = place.resolve().name if folder == place else folder.relative_to(place).as_posix()
        for place_in_folder, key in enumerate(keys, start=1):
            found.append(_stack(name if len(keys) == 1 else f"{name}-{place_in_folder}", groups[key]))
    return found, damaged, passed_over


def _stack(name: str, files: Sequence[tuple[Path, Any]]) -> Source:
    """One series as a stack by location, or why it is none."""
    modality = MODALITIES.get(str(files[0][1]), str(files[0][1]))
    if len(files) < 2:
        return Source(name=name, modality=modality, fault="a DICOM series of one slice")
    try:
        slices = sorted((read_slice(path) for path, _ in files), key=lambda one: one.location)
        affine(slices)
    except FedMedSegError as error:
        return Source(name=name, modality=modality, fault=f"{error.field}: {error.got}")
    return Source(name=name, slices=slices, modality=modality)
