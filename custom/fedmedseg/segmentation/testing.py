"""The one test: every model of this run on the test volumes, per patient, with a page for the site."""

from __future__ import annotations

from typing import Any

from fedmedseg.core.errors import DataError
from fedmedseg.core.learner import Reply, Task
from fedmedseg.reporting.metrics import CaseScore
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.evaluation import evaluate, labelled
from fedmedseg.segmentation.scores import from_plain, metrics_of, to_plain, write_scores
from fedmedseg.segmentation.site_page import write_page, write_untested
from fedmedseg.segmentation.stages import UNTRAINED

EVALUATING = "evaluating"


def score_models(bench: Bench, task: Task) -> Reply:
    """Score each start's model, and the untrained network where the study wants it; a scored one is not scored again.

    Raises:
        Aborted: the federation asked to stop; the task continues when it is given again.
        FedMedSegError: a model of this run is missing (reason MISSING_TENSORS).
        ConfigurationError: a model file was changed since.
        DataError: no test case here, or no labelled one (reason NO_CASES); the site's page then says so.
    """
    try:
        return _scored(bench, task)
    except DataError as error:
        write_untested(bench.folder, error, site=bench.site, experiment=bench.experiment, read_as=bench.read_as)
        raise


def _scored(bench: Bench, task: Task) -> Reply:
    digests = {start: bench.digest(start, task) for start in bench.starts}
    key = "|".join([task.stage, str(task.round), *(f"{start}={sha}" for start, sha in digests.items())])
    saved = task.state.load(EVALUATING)
    scored: dict[str, list[Any]] = dict(saved["models"]) if saved is not None and saved["key"] == key else {}
    volumes = labelled(bench.test)
    untrained = (UNTRAINED,) if bench.experiment.segmentation.test_untrained else ()
    for name in (*bench.starts, *untrained):
        if name not in scored:
            scored[name] = [to_plain(score) for score in _score(bench, name, digests.get(name), task)]
            task.state.save(EVALUATING, {"key": key, "models": scored})
    results = {name: [from_plain(score) for score in scores] for name, scores in scored.items()}
    write_scores(bench.folder / "test_scores.json", results, experiment=bench.experiment)
    write_page(bench, results, digests, task)
    counts = {"cases": float(len(volumes)), "set_aside": float(len(bench.test.quarantined))}
    return Reply(metrics=metrics_of(results, least=bench.site.least_told) | counts, examples=len(volumes))


def _score(bench: Bench, name: str, sha256: str | None, task: Task) -> list[CaseScore]:
    if sha256 is None:
        bench.begin({})
    else:
        bench.load(name, sha256)
    return evaluate(
        bench.model,
        volumes=bench.test,
        experiment=bench.experiment,
        device=bench.site.device,
        salt=bench.site.salt,
        choice=bench.way("inference", task),
        aborted=task.aborted,
        on_case=lambda done, total: task.progress.update(f"testing {name}", done, total),
    )
