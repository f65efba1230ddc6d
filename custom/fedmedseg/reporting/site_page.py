"""A site's own page after the test: pictures, scores case by case, what failed. It shows patients and stays here.

It is built from what a site's own process holds, written into the site's own folder and read by nothing else in this
package: neither a reply nor a log line is made of it. The server's page is ``reporting.report``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.config import Experiment
from fedmedseg.reporting.metrics import StructureScore
from fedmedseg.reporting.page import png_uri, render_page
from fedmedseg.reporting.tables import counted, label_of
from fedmedseg.segmentation.overlay import MODEL_COLOURS, TRUTH, TRUTH_COLOUR

FILE = "site_report.html"
TEMPLATE = "site.html.jinja"
UNTRAINED = "untrained"
"""The model that is there to be compared with: what it misses is no news."""
NOT_THERE = "in neither"
"""Of a structure that neither truth nor prediction holds."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One score of one case, as people read it."""

    text: str
    under: str = ""
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case under one model."""

    case: str
    """The file's name at the site."""
    patient: str
    standing: float
    """0 to 1, nan where there is nothing to judge; the worst come first."""
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """Every case under one model."""

    model: str
    columns: Sequence[str]
    rows: Sequence[CaseRow]

    @property
    def name(self) -> str:
        """The model's name for people."""
        return label_of(self.model)

    @property
    def sorted_rows(self) -> list[CaseRow]:
        """The worst first, cases without anything to judge last."""
        return sorted(self.rows, key=lambda row: (math.isnan(row.standing), row.standing, row.case))

    @property
    def failures(self) -> list[tuple[str, str]]:
        """(case, what failed) of every case in which something was missed whole or invented."""
        failed = [
            (row.case, ", ".join(name for name, cell in zip(self.columns, row.cells, strict=True) if cell.failed))
            for row in self.sorted_rows
        ]
        return [(case, what) for case, what in failed if what]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One case's slice with outlines."""

    place: str
    """``worst``, ``median`` or ``best``."""
    case: str
    standing: float
    png: bytes
    outlined: Sequence[str] = ()
    """The models whose outlines it holds, in the order of ``overlay.MODEL_COLOURS``."""

    @property
    def source(self) -> str:
        """The picture within the page."""
        return png_uri(self.png)


@dataclass(frozen=True, kw_only=True)
class SitePage:
    """What the page holds. ``tables``: that of the model which the pictures judge by comes first.

    Where nothing was tested it has neither tables nor pictures, and says why.
    """

    site: str
    experiment: Experiment
    tables: Sequence[ModelTable]
    pictures: Sequence[Picture]
    points: bool = False
    """Whether any column is a landmark's distance."""
    aside: Sequence[tuple[str, str, str]] = field(default_factory=list)
    """(section, case, reason) of every case set aside."""
    untested: str = ""
    """Why nothing was tested; empty where something was."""


def structure_cell(score: StructureScore | None) -> Cell:
    """Dice, and under it HD95 in mm; a structure that was not looked for, or is in neither, has no score."""
    if score is None:
        return Cell(text="-", under="not marked")
    if not score.counted:
        return Cell(text="-", under=NOT_THERE)
    return Cell(text=f"{score.dice:.3f}", under=f"{score.hd95:.1f} mm", failed=score.failures > 0)


def write_site_page(folder: Path, page: SitePage) -> None:
    """Write the page into ``folder``, which is the site's own, in one piece.

    Raises:
        OSError: disk full or not writable.
    """
    write_atomic(folder / FILE, render_site_page(page, written=datetime.now(UTC)).encode())


def render_site_page(page: SitePage, *, written: datetime) -> str:
    """The HTML text. Names of files and patients are escaped as everything is."""
    judge = page.tables[0].name if page.tables else ""
    rows = page.tables[0].rows if page.tables else []
    return render_page(
        TEMPLATE,
        {
            "site": page.site,
            "study": page.experiment.study,
            "system": page.experiment.system,
            "digest": page.experiment.digest,
            "written": f"{written:%Y-%m-%d %H:%M} UTC",
            "untested": page.untested,
            "cases": counted(len(rows), "test case"),
            "patients": counted(len({row.patient for row in rows}), "patient"),
            "judge": judge,
            "points": page.points,
            "pictures": page.pictures,
            "key": _key(page.pictures),
            "tables": page.tables,
            "failures": [
                (table.name, case, what)
                for table in page.tables
                if table.model != UNTRAINED
                for case, what in table.failures
            ],
            "aside": page.aside,
            "models": ", ".join(table.name for table in page.tables),
        },
    )


def _key(pictures: Sequence[Picture]) -> list[tuple[str, str, str]]:
    """(name, colour, style of line) of the truth and of each model that is outlined; nothing without pictures."""
    models = dict.fromkeys(model for picture in pictures for model in picture.outlined)
    colours = [MODEL_COLOURS[index % len(MODEL_COLOURS)] for index in range(len(models))]
    lines = [(label_of(model), colour, "dashed") for model, colour in zip(models, colours, strict=True)]
    return [(TRUTH, TRUTH_COLOUR, "solid"), *lines] if pictures else []


def remove_site_page(folder: Path, pictures: Iterable[str]) -> None:
    """Take away the page and pictures of an earlier test, where a site no longer wants any."""
    for name in (FILE, *pictures):
        (folder / name).unlink(missing_ok=True)
