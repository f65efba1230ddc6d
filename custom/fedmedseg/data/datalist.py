"""Data lists in the Decathlon/MONAI JSON form: which files a site has, for what, and of which patient."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from fedmedseg.core.errors import ConfigurationError, DataError, called, why
from fedmedseg.core.schema import Strict, parse

SECTIONS = ("training", "validation", "test", "unlabeled")
MOST_NAMED = 10
"""Absent files that an error names."""
_SCORED = ("training", "validation", "test")


@dataclass(frozen=True)
class Case:
    """One volume, with its label where it has one."""

    image: Path
    label: Path | None
    patient: str
    annotated_labels: tuple[int, ...] | None
    """The structures an annotator looked for; None: all of them."""
    key: str
    """Salted hash that tells cases apart in logs without naming anybody."""
    allow_empty: bool = False
    """The label may hold no structure at all."""
    landmarks: Path | None = None
    """File of landmarks (``data.landmarks``), for the systems that use them."""
    heart: Path | None = None
    """Label map of the heart's structures (``data.tasks``), of any grid, for the systems that use them."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case, the image first."""
        return tuple(file for file in (self.image, self.label, self.landmarks, self.heart) if file is not None)


class Entry(Strict):
    """One case of a data list."""

    image: str = Field(min_length=1)
    label: str | None = Field(None, min_length=1)
    patient: str | None = Field(None, min_length=1)
    annotated_labels: tuple[int, ...] | None = None
    allow_empty: bool = False
    landmarks: str | None = Field(None, min_length=1)
    heart: str | None = Field(None, min_length=1)


class DataList(Strict):
    """The sections of a data list. What Decathlon adds (name, labels, numTraining, ...) is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    training: tuple[Entry, ...] = ()
    validation: tuple[Entry, ...] = ()
    test: tuple[Entry, ...] = ()
    unlabeled: tuple[Entry, ...] = ()

    @field_validator("training", "validation", "test", "unlabeled", mode="before")
    @classmethod
    def _bare_names_are_images(cls, entries: Any) -> Any:
        # Decathlon lists its test images as bare strings
        if isinstance(entries, list):
            return [{"image": entry} if isinstance(entry, str) else entry for entry in entries]
        return entries


def read_datalist(path: Path, *, salt: str) -> dict[str, list[Case]]:
    """The cases of each section, sorted by patient and image name; relative paths start at the list's folder.

    Raises:
        ConfigurationError: the list is missing or has an unknown section.
        DataError: it is not JSON, has a wrong key or value, names absent files or one image twice, lacks label,
            landmarks and heart in training or validation without ``annotated_labels: []``, or shows a patient in two of
            training, validation and test.
    """
    sections = listed_cases(path, salt=salt)
    _refuse_absent(sections)
    _refuse_leaks(sections)
    return sections


def listed_cases(path: Path, *, salt: str) -> dict[str, list[Case]]:
    """As ``read_datalist``, but absent files and patients in several sections are left to the caller.

    Raises:
        ConfigurationError, DataError: as ``read_datalist`` for everything else.
    """
    content = _read_json(path)
    _refuse_strays(content)
    listed = _parsed(content)
    return {section: _cases(getattr(listed, section), section, path.parent, salt) for section in SECTIONS}


def absent_files(sections: Mapping[str, list[Case]]) -> tuple[list[Path], int]:
    """Files that are named and not there, and how many are named in all."""
    named = {file for cases in sections.values() for case in cases for file in case.files}
    return sorted(file for file in named if not file.is_file()), len(named)


def leaks(sections: Mapping[str, list[Case]]) -> dict[str, set[str]]:
    """Patients and images in more than one of training, validation and test, with those sections."""
    places: dict[str, set[str]] = {}
    for section in _SCORED:
        for case in sections[section]:
            places.setdefault(case.patient, set()).add(section)
            places.setdefault(str(case.image), set()).add(section)
    return {name: found for name, found in places.items() if len(found) > 1}


def case_key(salt: str, name: str) -> str:
    """Twelve hexadecimal digits that mean nothing without the site's salt."""
    return hmac.new(salt.encode(), name.encode(), hashlib.sha256).hexdigest()[:12]


def image_stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            "data list",
            got=f"no file at {path}",
            expected="a JSON file with training, validation, test and unlabeled",
            remedy="correct datasets.<role>.list in the site file",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("data list", got=f"{path} ({why(error)})", expected="a JSON file") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            "data list",
            got=f"no JSON: {error.msg} in line {error.lineno}, column {error.colno}",
            expected="a JSON object",
            remedy=f"correct line {error.lineno} of {path.name}",
        ) from None
    except RecursionError as error:
        raise DataError("data list", got=f"JSON that is {why(error)}", expected="a JSON object") from None
    if not isinstance(content, dict):
        raise DataError("data list", got=called(content), expected="a JSON object")
    for section in SECTIONS:
        if not isinstance(content.get(section, []), list):
            raise DataError(
                f"data list: {section}",
                got=called(content[section]),
                expected="a list of cases",
                remedy=f'write "{section}": [{{"image": ..., "label": ...}}]',
            )
    return content


def _parsed(content: Mapping[str, Any]) -> DataList:
    """The list against its model. What came is data (a patient's number, a file), so it must not reach a log."""
    try:
        return parse(DataList, content, source="data list")
    except ConfigurationError as error:
        raise DataError(
            error.field, got=error.got, expected=error.expected, remedy=error.remedy, reason=error.reason
        ) from None


def _refuse_strays(content: Mapping[str, Any]) -> None:
    """A misspelt section would silently lose its cases: anything else that holds cases is an error."""
    for name, value in content.items():
        if name in SECTIONS:
            continue
        close = difflib.get_close_matches(name.lower(), SECTIONS, n=1, cutoff=0.8)
        holds_cases = isinstance(value, list) and any(isinstance(item, dict) and "image" in item for item in value)
        if holds_cases or (close and isinstance(value, list)):
            raise ConfigurationError(
                f"data list: {name}",
                got=f"an unknown section {name!r}",
                expected=f"one of {', '.join(SECTIONS)}",
                remedy=f"write {close[0]!r}" if close else "remove it or move its cases to a known section",
            )


def _cases(entries: tuple[Entry, ...], section: str, folder: Path, salt: str) -> list[Case]:
    cases = []
    for index, entry in enumerate(entries):
        marked = entry.annotated_labels
        if entry.label is None and marked is None and (entry.landmarks or entry.heart):
            # points were placed, and no structure drawn
            marked = ()
        if section in ("training", "validation") and entry.label is None and marked != ():
            raise DataError(
                f"data list: {section}.{index}",
                got="no label",
                expected="an entry with image and label",
                remedy="add the label, write annotated_labels: [] where none was drawn, or move it to unlabeled",
            )
        image = folder / entry.image
        cases.append(
            Case(
                image=image,
                label=None if entry.label is None else folder / entry.label,
                patient=entry.patient or image_stem(image),
                annotated_labels=marked,
                key=case_key(salt, entry.image),
                allow_empty=entry.allow_empty,
                landmarks=None if entry.landmarks is None else folder / entry.landmarks,
                heart=None if entry.heart is None else folder / entry.heart,
            )
        )
    cases.sort(key=lambda case: (case.patient, case.image.name, str(case.image)))
    images = [case.image for case in cases]
    if len(set(images)) != len(images):
        twice = next(image for image in images if images.count(image) > 1)
        raise DataError(
            f"data list: {section}",
            got=f"{len(images) - len(set(images))} image(s) listed twice, the first {twice}",
            expected="each image once in a section",
        )
    return cases


def _refuse_absent(sections: Mapping[str, list[Case]]) -> None:
    absent, named = absent_files(sections)
    if absent:
        raise DataError(
            "data list",
            got=f"{len(absent)} of {named} named files absent: {', '.join(map(str, absent[:MOST_NAMED]))}"
            + (f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""),
            expected="files that exist",
            remedy="correct the paths, which start at the folder of the data list; nothing was changed",
        )


def _refuse_leaks(sections: Mapping[str, list[Case]]) -> None:
    shared = leaks(sections)
    if shared:
        name, found = min(shared.items())
        raise DataError(
            "data list",
            got=f"{len(shared)} patient(s) or image(s) in more than one section, the first {name!r} in "
            + " and ".join(sorted(found)),
            expected="every patient in only one of training, validation and test",
            remedy="split by patient, never by volume",
        )
