"""A new task on a foundation at one place, without a federation: the stages transfer and evaluation of the learner."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmedseg.cardiac_ct.foundation import Foundation, save_foundation
from fedmedseg.cardiac_ct.learner import KnowledgeDistillationLearner
from fedmedseg.cardiac_ct.plan import TRANSFER, initial_shared
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.core.versions import installed_versions
from fedmedseg.data.site import Site
from fedmedseg.data.tasks import TASKS
from fedmedseg.reporting.calcium_table import BEGINNINGS
from fedmedseg.reporting.points import ALL

HERE = "here"


def record_beside(out: Path) -> Path:
    """Where the record of the networks in ``out`` lies: ``heart.run.json`` beside ``heart.safetensors``."""
    return out.with_suffix(".run.json")


def tune(
    foundation: Foundation, study: Experiment, datalist: Path, *, folder: Path, out: Path, device: str = "cpu"
) -> dict[str, Any]:
    """Train the new last layer of ``study``, write it with the frozen network it is put on to ``out``, and test it.

    The layer begins at the study's seed, whatever layer the file has. ``folder`` holds what is prepared and remembered
    meanwhile. Returns what is written beside ``out`` too: of the record that a run's server writes, who and what ran,
    with which settings and versions, and the figures of the task, none where no test case annotates it.

    Raises:
        DataError: no training case annotates the task (reason NO_CASES) or is large enough, or a damaged data list.
        OSError: disk full or not writable.
    """
    site = Site(
        name=HERE,
        state_root=folder / "state",
        cache=folder / "cache",
        models=folder / "models",
        device=device,
        datasets={study.data.role: datalist.resolve()},
        # of the list, so that the same call draws the same patches; whoever lacks the list cannot guess it
        salt=hashlib.sha256(datalist.read_bytes()).hexdigest(),
        simulated=False,
    )
    learner = KnowledgeDistillationLearner(experiment=study, site=site)
    initial = initial_shared(study)
    layer = {name: tensor for name, tensor in initial.items() if name.startswith(TRANSFER)}
    tensors = {name: tensor for name, tensor in foundation.tensors.items() if name in initial} | layer
    task = _task(study, "transfer", content_sha256(tensors), folder)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        tensors |= learner.run(task, tensors).tensors
    except DataError as error:
        if error.field != "data.crop":
            raise
        raise DataError(
            error.field,
            got=error.got,
            expected=error.expected,
            remedy="the crop is the file's, which is how its networks see a scan: take larger scans, or another file",
            reason=error.reason,
        ) from None
    digest = content_sha256(tensors)
    # the same call gives the same file, so the run is called after what it made
    run = f"tuned-{digest[:32]}"
    # a record that lies there is of other networks from now on
    record_beside(out).unlink(missing_ok=True)
    save_foundation(out, tensors, experiment=study, run=run)
    figures: dict[str, float] = {}
    try:
        reply = learner.run(replace(task, stage="evaluation", base=digest), tensors)
    except DataError as error:
        if error.reason != Reason.NO_CASES:
            raise
    else:
        figures = _figures_of(study.wing.transfer.task, study.wing.transfer.backbones[0], reply.metrics)
        if "cases" in reply.metrics:
            figures["cases"] = reply.metrics["cases"]
    record = _record(study, run=run, started=started, figures=figures)
    write_atomic(record_beside(out), json.dumps(record, indent=1, sort_keys=True).encode())
    return record


def _record(study: Experiment, *, run: str, started: str, figures: Mapping[str, float]) -> dict[str, Any]:
    task = study.wing.transfer.task

    def one(stage: str, metrics: Mapping[str, float]) -> dict[str, Any]:
        sites = {HERE: {"accepted": True, "metrics": dict(metrics)}}
        return {"stage": stage, "round": 0, "rounds": 1, "accepted": [HERE], "sites": sites}

    return {
        "study": study.study,
        "system": study.system,
        "experiment_sha256": study.digest,
        "run": run,
        "seed": study.seed,
        "settings": study.model_dump(mode="json", exclude={"resume"}),
        "labels": {str(number): name for number, name in study.data.labels.items() if name in TASKS[task].names},
        "sites": [HERE],
        "started": started,
        "ended": True,
        "outcome": "finished",
        "versions": installed_versions(),
        "rounds": [one("transfer", {}), one("evaluation", figures)],
    }


def _task(study: Experiment, stage: str, base: str, folder: Path) -> Task:
    state = SiteState(folder / "state", study=study.study, experiment=study.digest, site=HERE, run="tuning")
    progress = Progress(site=HERE, stage=stage, round=0, rounds=1, file=folder / "progress.jsonl")
    return Task(site=HERE, stage=stage, round=0, rounds=1, seed=study.seed, base=base, state=state, progress=progress)


def _figures_of(task: str, backbone: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Those figures of the test that are of ``task``, on the backbone it was learned on; of calcification its scores.

    What is said of all points is of the task where no older head answered any.
    """
    here = {figure: figure.rpartition("/")[2] for figure in figures if backbone in figure.split("/")}
    wanted = set(TASKS[task].names)
    points = {name for figure, name in here.items() if figure.startswith("points/")} - {ALL}
    if points <= wanted:
        wanted.add(ALL)
    scores = tuple(BEGINNINGS.values()) if task == "calc" else ()
    return {figure: figures[figure] for figure, name in here.items() if name in wanted or figure.startswith(scores)}
