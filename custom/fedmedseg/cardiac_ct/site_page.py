"""The site's own page after a test of points, masks and calcium; see ``reporting.site_page``. Nothing of it travels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmedseg.cardiac_ct.evaluation import CaseResult, Predict
from fedmedseg.cardiac_ct.pictures import judge, standing, tested_cases, write_pictures
from fedmedseg.core.config import Experiment
from fedmedseg.data.set_aside import file_name, set_aside
from fedmedseg.data.tasks import TaskVolumes
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.site_page import (
    CaseRow,
    Cell,
    ModelTable,
    Picture,
    SitePage,
    remove_site_page,
    structure_cell,
    write_site_page,
)
from fedmedseg.segmentation.pictures import PICTURES

INVENTED = "points invented"
CALCIUM = {"volume": "calcium, mm\N{SUPERSCRIPT THREE}", "agatston": "Agatston score"}


def write_page(
    folder: Path,
    results: Mapping[str, Sequence[CaseResult]],
    models: Mapping[str, Predict],
    *,
    volumes: Volumes,
    marked: Mapping[str, TaskVolumes],
    experiment: Experiment,
) -> None:
    """Write page and pictures into ``folder``, this study's at this site, or take those of an earlier test away where
    the site file says ``report: false``. ``results`` and ``models`` as for ``write_pictures``.

    Raises:
        OSError: disk full or not writable.
    """
    site = volumes.site
    if not site.report:
        remove_site_page(folder, PICTURES)
        return
    drawn = write_pictures(folder, results, models, volumes=volumes, marked=marked, experiment=experiment)
    listed = site.data_list(experiment.data.role).parent
    cases = [volumes.cases[index] for index in tested_cases(marked)]
    names = [(file_name(case, listed), case.patient) for case in cases]
    # a site without a model has nothing to show but what was set aside
    order = dict.fromkeys([*([judge(models)] if models else []), *results]) or {judge(models): None}
    tables = [model_table(model, results.get(model, []), names if model in results else []) for model in order]
    aside = set_aside(site, experiment, now=volumes.quarantined)
    page = SitePage(
        site=site.name,
        experiment=experiment,
        tables=tables,
        pictures=[
            Picture(
                place=place,
                case=names[number][0],
                standing=standing(results[judge(models)][number]),
                png=png,
                outlined=list(models),
            )
            for place, (number, png) in drawn.items()
        ],
        points=any(one.distances for every in results.values() for one in every),
        aside=[(one.section, one.case, one.reason) for one in aside],
    )
    write_site_page(folder, page)


def model_table(model: str, results: Sequence[CaseResult], names: Sequence[tuple[str, str]]) -> ModelTable:
    """Every case under one model: a column for each point, for points invented, each structure, and calcium."""
    points = list(dict.fromkeys(name for one in results for name in one.distances))
    structures = list(dict.fromkeys(name for one in results for name in one.structures))
    calcium = [what for what in CALCIUM if any(one.calcium for one in results)]
    invented = [INVENTED] if points or any(one.invented for one in results) else []
    rows = [
        CaseRow(
            case=case,
            patient=patient,
            standing=standing(one),
            cells=[
                *(point_cell(one.distances.get(name)) for name in points),
                *(Cell(text=str(one.invented), failed=one.invented > 0) for _ in invented),
                *(structure_cell(one.structures.get(name)) for name in structures),
                *(_calcium_cell(one, what) for what in calcium),
            ],
        )
        for one, (case, patient) in zip(results, names, strict=True)
    ]
    columns = [
        *points,
        *invented,
        *(name.replace("_", " ") for name in structures),
        *(CALCIUM[what] for what in calcium),
    ]
    return ModelTable(model=model, columns=columns, rows=rows)


def point_cell(distance: float | None) -> Cell:
    """A point's distance in mm; None where the scan does not hold it, infinity where the model did not find it."""
    if distance is None:
        return Cell(text="-", under="not there")
    if math.isinf(distance):
        return Cell(text="not found", failed=True)
    return Cell(text=f"{distance:.1f} mm")


def _calcium_cell(one: CaseResult, what: str) -> Cell:
    if not one.calcium:
        return Cell(text="-", under="not marked")
    return Cell(text=f"{one.calcium[what]:.0f}", under=f"truth {one.calcium[f'true_{what}']:.0f}")
