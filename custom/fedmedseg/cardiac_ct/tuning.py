"""A new task on a foundation at one place, without a federation: the stages transfer and evaluation of the learner."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedmedseg.cardiac_ct.foundation import Foundation, save_foundation
from fedmedseg.cardiac_ct.learner import KnowledgeDistillationLearner
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.data.site import Site

HERE = "here"


def tune(
    foundation: Foundation, study: Experiment, datalist: Path, *, folder: Path, out: Path, device: str = "cpu"
) -> Mapping[str, float]:
    """Train the new last layer of ``study``, write it with the frozen networks to ``out``, and test it.

    ``folder`` holds what is prepared and remembered meanwhile. Returns the figures of the task, empty where no test
    case annotates it.

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
    tensors = {**initial_shared(study), **foundation.tensors}
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
    return {figure: value for figure, value in reply.metrics.items() if _is_of(figure, backbone, name)}


def _task(study: Experiment, stage: str, base: str, folder: Path) -> Task:
    state = SiteState(folder / "state", study=study.study, experiment=study.digest, site=HERE, run="tuning")
    progress = Progress(site=HERE, stage=stage, round=0, rounds=1, file=folder / "progress.jsonl")
    return Task(site=HERE, stage=stage, round=0, rounds=1, seed=study.seed, base=base, state=state, progress=progress)


def _is_of(figure: str, backbone: str, task: str) -> bool:
    """Whether a figure of the test is of the task that was learned under the backbone it was learned on."""
    from fedmedseg.data.tasks import TASKS

    parts = figure.split("/")
    return backbone in parts and (parts[-1] in TASKS[task].names or parts[-1] == "all points")
