"""One cell: train as its settings say, test every site's patients, measure what it cost."""

from __future__ import annotations

import json
import logging
import math
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedmedseg.comparison.cells import Cell, steps_of
from fedmedseg.comparison.sites import POOL, SiteFiles, for_trial, open_sites, place_site, pool, pooled_key
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, FedMedSegError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, merged, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.data.datalist import case_key
from fedmedseg.data.site import Site
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.metrics import CaseScore, per_patient, score_structures, summarise
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.evaluation import labelled
from fedmedseg.segmentation.scores import from_plain

MEGABYTE = 10**6
Patients = list[dict[str, dict[str, float | None]]]
"""Per patient: structure -> dice, hd95 (mm) and failures."""


@dataclass(frozen=True)
class Job:
    """A cell with the data that it runs on."""

    cell: Cell
    files: SiteFiles
    data_sha256: str
    work: Path


def run_cell(job: Job) -> None:
    """Run the cell and write its result; everything else of it is removed.

    Raises:
        FedMedSegError: a site failed.
    """
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    cell, began = job.cell, time.monotonic()
    folder = job.work / "cells" / cell.file.stem / cell.key[:12]
    shutil.rmtree(folder, ignore_errors=True)
    try:
        result = _run(job, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result |= {
        "data_sha256": job.data_sha256,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": round(peak_bytes() / MEGABYTE, 1),
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {cell.experiment.compute.threads} thread",
    }
    cell.write(result)


def peak_bytes() -> int:
    """The most memory that this process had at once."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes
    return peak if sys.platform == "darwin" else 1024 * peak


def _run(job: Job, folder: Path) -> dict[str, Any]:
    cell, experiment = job.cell, job.cell.experiment
    role = experiment.data.role
    files = job.files if cell.trial is None else for_trial(job.files, role, folder / "trial")
    cache = job.work / "cache"
    for name, content in files.items():
        place_site(name, content, folder / "w", cache)
    sites = open_sites(experiment, files, folder / "w")
    settings, groups = dict(cell.settings), [list(files)]
    if cell.training == "local":
        groups = [[name] for name in files]
    elif cell.training == "central":
        content, _ = pool(sites, experiment, folder / "pool")
        place_site(POOL, content, folder / "w", cache)
        # the pool's list holds no more than what counts
        settings = merged(settings, {"data": {"labelled_fraction": None, "labelled_patients": None}})
        groups = [[POOL]]
    written = write_job(find_job(cell.system), settings, folder / "job")
    federations = [
        InProcessFederation(
            job=written, workspace=folder / "w", sites=group, run=_token(cell), participation=cell.participation
        )
        for group in groups
    ]
    trained: dict[str, list[dict[str, float]]] = {}
    for federation in federations:
        _train(federation, trained, alone=cell.training == "local")
    patients = {}
    for name, site in sites.items():
        federation = next(one for one in federations if name in one.sites or POOL in one.sites)
        found = tested(federation, name, site, cell.model, experiment)
        if found:
            patients[name] = found
    if not patients:
        raise DataError("section test", got="no labelled case at any site", expected="at least one")
    figures = {name: figures_of(found) for name, found in patients.items()}
    first = federations[0]
    result: dict[str, Any] = {
        "method": cell.method,
        "labelled": cell.level.name,
        "seed": cell.seed,
        "model": cell.model,
        "chosen": dict(cell.chosen),
        "experiment_sha256": first.experiment.digest,
        "shared_sha256": content_sha256(first.shared),
        "steps_a_site": steps_of(experiment, cell.participation, len(files)),
        "parameters": sum(one.numel() for one in _bench(first, first.sites[0]).model.parameters()),
        "site_seconds": {site: round(sum(one["seconds"] for one in rounds), 2) for site, rounds in trained.items()},
        "megabytes": _moved(first) if cell.training == "federated" else {},
    }
    if cell.trial is not None:
        # of the validation cases, which the trial's data lists hold as its test section
        means = [mean_figure(one, "dice") for one in figures.values()]
        return {**result, "trial": cell.trial, "validation": round(sum(means) / len(means), 5)}
    return {**result, "sites": figures, "patients": patients}


def _train(federation: InProcessFederation, trained: dict[str, list[dict[str, float]]], *, alone: bool) -> None:
    """All stages in their order; ``trained`` gets each site's figures by round. A lone site may have no case."""
    for stage in federation.contracts:
        try:
            for one in federation.run_stage(stage):
                for site, figures in one.items():
                    trained.setdefault(site, []).append(figures)
        except FedMedSegError as error:
            if not alone or error.reason != Reason.NO_CASES:
                raise
            return


def tested(federation: InProcessFederation, name: str, site: Site, model: str, experiment: Experiment) -> Patients:
    """Every labelled test patient's figures, in the order of the site's data list; no key of a patient is kept.

    A patient whom no model was tested on has failed: an empty prediction in each of her volumes.
    """
    pooled = POOL in federation.sites
    tester = POOL if pooled else name
    scores = _scores(federation, tester, model)
    try:
        test = Volumes(site=site, experiment=experiment, section="test")
        indices = labelled(test)
    except DataError as error:
        if error.reason != Reason.NO_CASES:
            raise
        return []
    salted = _bench(federation, tester).site
    patients = list(dict.fromkeys(test.cases[index].patient for index in indices))
    keys = {
        patient: pooled_key(salted, name, patient) if pooled else case_key(salted.salt, patient) for patient in patients
    }
    return [
        plain(scores[keys[patient]])
        if keys[patient] in scores
        else plain(failure(test, [i for i in indices if test.cases[i].patient == patient], experiment))
        for patient in patients
    ]


def failure(test: Volumes, indices: list[int], experiment: Experiment) -> CaseScore:
    """The score of a patient (volumes ``indices`` of ``test``) of whom nothing was found."""
    scores = []
    for index in indices:
        truth, case = test.native_label(index), test.cases[index]
        structures = score_structures(
            np.zeros_like(truth),
            truth,
            spacing=test.native_spacing(index),
            labels=experiment.data.labels,
            annotated=case.annotated_labels,
        )
        scores.append(CaseScore(key=case.key, patient="", structures=structures))
    return per_patient(scores)[0]


def plain(score: CaseScore) -> dict[str, dict[str, float | None]]:
    """A patient's figures as a result keeps them; None where a structure does not count."""
    return {
        name: {"dice": _rounded(one.dice, 5), "hd95": _rounded(one.hd95, 3), "failures": float(one.failures)}
        for name, one in score.structures.items()
    }


def figures_of(patients: Patients) -> dict[str, dict[str, float]]:
    """Structure -> n, dice, hd95 (mm), failures: means over patients."""
    cases = [
        CaseScore(key="", patient="", structures=from_plain({"key": "", "patient": "", "structures": one}).structures)
        for one in patients
    ]
    return {
        row.structure: {
            "n": float(row.n),
            "dice": round(row.dice, 5),
            "hd95": round(row.hd95, 3),
            "failures": float(row.failures),
        }
        for row in summarise({"": cases})
        if row.n
    }


def mean_figure(figures: Mapping[str, Mapping[str, float]], figure: str) -> float:
    """A site's mean of ``figure`` over its structures."""
    values = [one[figure] for one in figures.values()]
    return sum(values) / len(values) if values else math.nan


def _scores(federation: InProcessFederation, tester: str, model: str) -> dict[str, CaseScore]:
    """Patient's key -> score, of the models that the site tested; empty where it tested none."""
    if tester in federation.declined.get("evaluation", {}):
        return {}
    file = _bench(federation, tester).folder / "test_scores.json"
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return {one["patient"]: from_plain(one) for one in content["models"][model]["patients"]}


def _bench(federation: InProcessFederation, site: str) -> Bench:
    """The bench on which the site tests its models."""
    return cast(Bench, cast(Any, federation.learner(site, "evaluation")).bench)


def _moved(federation: InProcessFederation) -> dict[str, dict[str, float]]:
    """Per site: megabytes down and up in all rounds."""
    moved: dict[str, dict[str, float]] = {}
    for one in federation.traffic:
        for site, ways in one.items():
            for way, count in ways.items():
                of_site = moved.setdefault(site, {"down": 0.0, "up": 0.0})
                of_site[way] += count / MEGABYTE
    return {site: {way: round(value, 4) for way, value in ways.items()} for site, ways in moved.items()}


def _rounded(value: float, places: int) -> float | None:
    return None if math.isnan(value) else round(value, places)


def _token(cell: Cell) -> str:
    """Token of a cell's run: letters and digits."""
    return f"{cell.method}{cell.seed}".replace("_", "").replace("-", "")
