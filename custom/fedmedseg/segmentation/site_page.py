"""The site's own page after a test of segmentation models; see ``reporting.site_page``. Nothing of it travels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, FedMedSegError, why
from fedmedseg.core.learner import Task
from fedmedseg.data.set_aside import file_name, set_aside
from fedmedseg.data.site import Site
from fedmedseg.reporting.metrics import CaseScore
from fedmedseg.reporting.site_page import (
    CaseRow,
    ModelTable,
    Picture,
    SitePage,
    remove_site_page,
    structure_cell,
    write_site_page,
)
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.evaluation import labelled
from fedmedseg.segmentation.pictures import PICTURES, chosen, draw_cases, judge, outlined, place_pictures, standing

logger = logging.getLogger(__name__)


def write_page(
    bench: Bench, results: Mapping[str, Sequence[CaseScore]], digests: Mapping[str, str], task: Task
) -> None:
    """Write page and pictures into the study's folder at this site, or take those of an earlier test away where the
    site file says ``report: false``.

    ``results`` are in the order of the labelled test cases. Where nothing was trained (``digests`` is empty) there is
    nothing to draw.

    Raises:
        Aborted: the federation asked to stop.
        OSError: disk full or not writable.
    """
    if not bench.site.report:
        remove_site_page(bench.folder, PICTURES)
        return
    first = judge(list(digests)) if digests else next(iter(results))
    standings = [standing(score) for score in results[first]]
    places = chosen(standings) if digests else {}
    drawn = draw_cases(bench, places, digests, task)
    place_pictures(bench.folder, drawn)
    names = case_names(bench)
    page = SitePage(
        site=bench.site.name,
        experiment=bench.experiment,
        tables=[_table(bench, model, results[model], names) for model in dict.fromkeys((first, *results))],
        pictures=[
            Picture(
                place=place,
                case=names[number][0],
                standing=standings[number],
                png=drawn[place],
                outlined=outlined(digests),
            )
            for place, number in places.items()
        ],
        aside=[
            (one.section, one.case, one.reason)
            for one in set_aside(bench.site, bench.read_as, now=bench.test.quarantined)
        ],
    )
    write_site_page(bench.folder, page)


def write_untested(folder: Path, error: DataError, *, site: Site, experiment: Experiment, read_as: Experiment) -> None:
    """Write a page that holds what was set aside alone, and ``error``, for which nothing was tested; what an earlier
    test left of page and pictures goes. ``read_as``: see ``Bench``. That it cannot be written is logged alone.
    """
    try:
        remove_site_page(folder, PICTURES)
        if not site.report:
            return
        try:
            aside = [(one.section, one.case, one.reason) for one in set_aside(site, read_as)]
        except FedMedSegError:
            # the data list itself is damaged, which the error says
            aside = []
        page = SitePage(site=site.name, experiment=experiment, tables=[], pictures=[], aside=aside, untested=str(error))
        write_site_page(folder, page)
    except OSError as failed:
        logger.error("this site's page was not written: %s", why(failed))


def case_names(bench: Bench) -> list[tuple[str, str]]:
    """(file, patient) of every labelled test case, by the site's own names."""
    folder = bench.site.data_list(bench.experiment.data.role).parent
    cases = (bench.test.cases[index] for index in labelled(bench.test))
    return [(file_name(case, folder), case.patient) for case in cases]


def _table(bench: Bench, model: str, scores: Sequence[CaseScore], names: Sequence[tuple[str, str]]) -> ModelTable:
    structures = list(bench.experiment.data.labels.values())
    rows = [
        CaseRow(
            case=case,
            patient=patient,
            standing=standing(score),
            cells=[structure_cell(score.structures.get(name)) for name in structures],
        )
        for score, (case, patient) in zip(scores, names, strict=True)
    ]
    return ModelTable(model=model, columns=[name.replace("_", " ") for name in structures], rows=rows)
