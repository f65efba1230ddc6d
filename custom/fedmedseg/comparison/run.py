"""One cell: train as its settings say, test every site's patients, measure what it cost."""

from __future__ import annotations

import logging
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedseg.comparison.cells import Cell, steps_of
from fedmedseg.comparison.patients import Tested, bench_of, figures_of, mean_figure, tested
from fedmedseg.comparison.sites import POOL, SiteFiles, for_trial, open_sites, place_site, pool
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.errors import DataError, FedMedSegError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, merged, write_job
from fedmedseg.core.records import installed_versions

MEGABYTE = 10**6


@dataclass(frozen=True)
class Job:
    """A cell with the data that it runs on."""

    cell: Cell
    files: SiteFiles
    data_sha256: str
    salt: str
    """Of the patients' hashes; the same for all cells on the same data lists, and told in no result."""
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
        "process_peak_mb": round(peak_bytes() / MEGABYTE, 1),
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {cell.experiment.compute.threads} thread",
    }
    cell.write(result)


def peak_bytes() -> int:
    """The most memory that this process, which holds all sites of its cell, had at once.

    No share of it is one site's own: they have one interpreter and one copy of every library, and train in turn.
    """
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
        content = pool(sites, experiment, folder / "pool")
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
    found: dict[str, Tested] = {}
    for name, site in sites.items():
        federation = next(one for one in federations if name in one.sites or POOL in one.sites)
        of_site = tested(federation, name, site, cell.model, experiment, salt=job.salt)
        if of_site.patients:
            found[name] = of_site
    if not found:
        raise DataError("section test", got="no labelled case at any site", expected="at least one")
    figures = {name: figures_of(one.patients) for name, one in found.items()}
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
        "parameters": sum(one.numel() for one in bench_of(first, first.sites[0]).model.parameters()),
        "site_seconds": {site: round(sum(one["seconds"] for one in rounds), 2) for site, rounds in trained.items()},
        "megabytes": _moved(first) if cell.training == "federated" else {},
    }
    if cell.trial is not None:
        # of the validation cases, which the trial's data lists hold as its test section
        means = [mean_figure(one, "dice") for one in figures.values() if one]
        if not means:
            raise DataError("section validation", got="no structure at any site", expected="at least one to judge by")
        return {**result, "trial": cell.trial, "validation": round(sum(means) / len(means), 5)}
    return {
        **result,
        "sites": figures,
        "patients": {name: one.patients for name, one in found.items()},
        "tested": {name: one.keys for name, one in found.items()},
        "unpredicted": {name: one.unpredicted for name, one in found.items()},
    }


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


def _moved(federation: InProcessFederation) -> dict[str, dict[str, float]]:
    """Per site: megabytes down and up in all rounds."""
    moved: dict[str, dict[str, float]] = {}
    for one in federation.traffic:
        for site, ways in one.items():
            for way, count in ways.items():
                of_site = moved.setdefault(site, {"down": 0.0, "up": 0.0})
                of_site[way] += count / MEGABYTE
    return {site: {way: round(value, 4) for way, value in ways.items()} for site, ways in moved.items()}


def _token(cell: Cell) -> str:
    """Token of a cell's run: letters and digits."""
    return f"{cell.method}{cell.seed}".replace("_", "").replace("-", "")
