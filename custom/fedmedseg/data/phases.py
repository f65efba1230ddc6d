"""Which images of a folder are whose end-diastole and end-systole: told by a table, never guessed."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, nearest
from fedmedseg.data.importers.base import suffix_of

COLUMNS = ("patient", "ed", "es")
MOST_BYTES = 1 << 22


@dataclass(frozen=True)
class Phases:
    """Names of one patient's images, as ``data.images`` gives them."""

    patient: str
    diastole: str
    systole: str


def read_phases(path: Path, known: Collection[str]) -> list[Phases]:
    """The rows of a CSV table with the columns patient, ed and es: images by their path below the folder.

    Endings may be left out. Other columns are not read.

    Raises:
        ConfigurationError: no such table, a column missing, a patient twice, or an image that is not in ``known``.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigurationError(
                "--phases", got=f"{path.stat().st_size} bytes", expected=f"a table of {MOST_BYTES} at most"
            )
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            # line_num is that of the row that was read last
            numbered = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ConfigurationError("--phases", got=f"no table at {path}", expected="a CSV file") from None
    rows = [row for _, row in numbered]
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ConfigurationError(
            f"--phases {path.name}",
            got=f"a table without {', '.join(missing)}" if rows else "no row",
            expected=f"rows under the columns {', '.join(COLUMNS)}",
        )
    found = [Phases(*(str(row[name] or "").strip() for name in COLUMNS)) for row in rows]
    if len({one.patient for one in found}) != len(found):
        raise ConfigurationError(f"--phases {path.name}", got="a patient twice", expected="one row for each patient")
    return [
        checked(one, known, source=f"--phases {path.name}, line {line}")
        for (line, _), one in zip(numbered, found, strict=True)
    ]


def checked(phases: Phases, known: Collection[str], *, source: str) -> Phases:
    """``phases`` with the images' names as they are in ``known``.

    Raises:
        ConfigurationError: an image that is not there, or one for both.
    """
    names = []
    for given in (phases.diastole, phases.systole):
        name = given if given in known else given.removesuffix(suffix_of(Path(given)) or "")
        if name not in known:
            guess = nearest(name, known)
            raise ConfigurationError(
                source,
                got=f"{given!r}, which is no image here",
                expected="images by their path below the folder",
                remedy=f"write {guess!r}" if guess else "",
            )
        names.append(name)
    if names[0] == names[1]:
        raise ConfigurationError(source, got=f"{names[0]!r} for both", expected="two frames")
    return Phases(phases.patient, names[0], names[1])
