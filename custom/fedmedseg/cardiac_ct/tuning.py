"""A new task on a foundation at one place, without a federation: the stages transfer and evaluation of the learner."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedmedseg.cardiac_ct.foundation import Foundation, save_foundation
from fedmedseg.cardiac_ct.learner import KnowledgeDistillationLearner
from fedmedseg.cardiac_ct.plan import TRANSFER, initial_shared
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.data.site import Site
from fedmedseg.data.tasks import TASKS
from fedmedseg.reporting.points import ALL

HERE = "here"


def tune(
    foundation: Foundation, study: Experiment, datalist: Path, *, folder: Path, out: Path, device: str = "cpu"
) -> Mapping[str, float]:
    """Train the new last layer of ``study``, write it with the frozen network it is put on to ``out``, and test it.

    The layer begins at the study's seed, whatever layer the file has. ``folder`` holds what is prepared and remembered
    meanwhile. Returns the figures of the task, empty where no test case annotates it.

    Raises:
        DataError: no training case annotates the task (reason NO_CASES), or a damaged data list.
        OSError: disk full or not writable.
    """
    site = Site(
        name=HERE,
        state_root=folder / "state",
        cache=folder / "cache",
        models=folder / "models",
        device=device,
        datasets={study.data.role: datalist.resolve()},
        salt=secrets.token_hex(16),
        simulated=False,
    )
    learner = KnowledgeDistillationLearner(experiment=study, site=site)
    initial = initial_shared(study)
    layer = {name: tensor for name, tensor in initial.items() if name.startswith(TRANSFER)}
    tensors = {name: tensor for name, tensor in foundation.tensors.items() if name in initial} | layer
    task = _task(study, "transfer", content_sha256(tensors), folder)
    tensors |= learner.run(task, tensors).tensors
    save_foundation(out, tensors, experiment=study)
    try:
        reply = learner.run(replace(task, stage="evaluation", base=content_sha256(tensors)), tensors)
    except DataError as error:
        if error.reason != Reason.NO_CASES:
            raise
        return {}
    backbone, name = study.wing.transfer.backbones[0], study.wing.transfer.task
    return _figures_of(name, backbone, reply.metrics)


def _task(study: Experiment, stage: str, base: str, folder: Path) -> Task:
    state = SiteState(folder / "state", study=study.study, experiment=study.digest, site=HERE, run="tuning")
    progress = Progress(site=HERE, stage=stage, round=0, rounds=1, file=folder / "progress.jsonl")
    return Task(site=HERE, stage=stage, round=0, rounds=1, seed=study.seed, base=base, state=state, progress=progress)


def _figures_of(task: str, backbone: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Those figures of the test that are of ``task``, on the backbone it was learned on.

    What is said of all points is of the task where no older head answered any.
    """
    here = {figure: figure.rpartition("/")[2] for figure in figures if backbone in figure.split("/")}
    wanted = set(TASKS[task].names)
    points = {name for figure, name in here.items() if figure.startswith("points/")} - {ALL}
    if points <= wanted:
        wanted.add(ALL)
    return {figure: figures[figure] for figure, name in here.items() if name in wanted}
