"""The site's own page after a test of segmentation models; see ``reporting.site_page``. Nothing of it travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedmedseg.core.learner import Task
from fedmedseg.data.set_aside import file_name, set_aside
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
            for one in set_aside(bench.site, bench.experiment, now=bench.test.quarantined)
        ],
    )
    write_site_page(bench.folder, page)


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
