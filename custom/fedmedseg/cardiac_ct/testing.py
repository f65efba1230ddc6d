"""The one test of a site: every model of this run on the test cases, their figures, and a page for the site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmedseg.cardiac_ct.evaluation import Predict, from_plain, metrics, score_cases, to_plain, write_results
from fedmedseg.cardiac_ct.foundation import save_models
from fedmedseg.cardiac_ct.lessons import annotated
from fedmedseg.cardiac_ct.models import CNN, TRANSFORMER, UNTRAINED, Networks
from fedmedseg.cardiac_ct.plan import STUDENT, TEACHER, TRANSFER, made
from fedmedseg.cardiac_ct.site_page import write_page
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.learner import Reply, Task
from fedmedseg.data.tasks import TaskVolumes
from fedmedseg.data.volumes import Volumes

TESTED = "tested"
"""What a site remembers of a test that was interrupted: the models that were scored, case by case."""


def score_models(task: Task, *, networks: Networks, test: Volumes, folder: Path) -> Reply:
    """Score every model on whatever ``test`` annotates; a model that was scored is not scored again.

    Scores, networks as files and pictures go to ``folder``; they stay at the site.

    Raises:
        Aborted: the federation asked to stop; the task continues when it is given again.
        DataError: no case annotates anything (reason NO_CASES).
    """
    experiment, site = networks.experiment, networks.site
    marked = _marked(test, experiment)
    key = f"{task.stage}|{task.round}|{content_sha256(networks.tensors)}"
    saved = task.state.load(TESTED)
    tested: dict[str, list[Any]] = dict(saved["models"]) if saved is not None and saved["key"] == key else {}
    models = _models(networks)
    for model, predict in models.items():
        if model in tested:
            continue
        work = f"testing {model}"
        scored = score_cases(
            predict(),
            volumes=test,
            marked=marked,
            experiment=experiment,
            salt=site.salt,
            aborted=task.aborted,
            on_case=lambda done, total, work=work: task.progress.update(work, done, total),  # type: ignore[misc]
        )
        tested[model] = [to_plain(one) for one in scored]
        task.state.save(TESTED, {"key": key, "models": tested})
    results = {model: [from_plain(one) for one in every] for model, every in tested.items()}
    write_results(folder / "test_scores.json", results, experiment=experiment)
    save_models(folder, networks.tensors, experiment=experiment, run=task.state.run)
    drawn = {model: predict() for model, predict in models.items() if model != UNTRAINED}
    write_page(folder, results, drawn, volumes=test, marked=marked, experiment=experiment)
    cases = len({index for one in marked.values() for index in one.indices})
    return Reply(metrics=metrics(results, least=site.least_told) | {"cases": float(cases)}, examples=cases)


def _marked(test: Volumes, experiment: Experiment) -> dict[str, TaskVolumes]:
    """Of each task of the study the cases that annotate it, where there are any."""
    moved = any(there and name.startswith(TRANSFER) for name, there in made(experiment).items())
    wanted = dict.fromkeys([*experiment.wing.tasks, *([experiment.wing.transfer.task] if moved else [])])
    marked = {name: found for name in wanted if (found := annotated(test, name, experiment.wing.radius)) is not None}
    if not marked:
        raise DataError(
            "section test",
            got=f"{len(test)} cases that annotate none of {', '.join(wanted)}",
            expected="at least one that does",
            remedy="add annotated test cases, or leave the test to other sites",
            reason=Reason.NO_CASES,
        )
    return marked


def _models(networks: Networks) -> dict[str, Callable[[], Predict]]:
    """What is tested, by the names of reports; each is built when its turn comes."""
    models: dict[str, Callable[[], Predict]] = {}
    if networks.has(TEACHER):
        models[CNN] = networks.predict_cnn
    if networks.has(STUDENT):
        models[TRANSFORMER] = networks.predict_student
        if networks.experiment.segmentation.test_untrained:
            models[UNTRAINED] = lambda: networks.predict_student(untrained=True)
    return models
