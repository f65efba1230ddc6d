"""The patients a cell is tested on: who counts, what was found of each, and what it costs to have found nothing."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedmedseg.comparison.sites import POOL
from fedmedseg.core.config import Experiment
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.data.checks import CaseRejected, check_label, check_stream, read_header, read_voxels
from fedmedseg.data.datalist import Case, case_key, read_datalist
from fedmedseg.data.site import Site
from fedmedseg.reporting.metrics import CaseScore, per_patient, score_structures, summarise
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.scores import from_plain

logger = logging.getLogger(__name__)

Patients = list[dict[str, dict[str, float | None]]]
"""Per patient: structure -> dice, hd95 (mm) and failures."""


@dataclass(frozen=True)
class Tested:
    """One site's test patients that count, in the order of its data list."""

    patients: Patients
    keys: list[str]
    """Who they are: hashes, alike in all cells on the same data lists."""
    unpredicted: int
    """Volumes of theirs that no model was tested on; each counts as an empty prediction."""


def tested(
    federation: InProcessFederation, name: str, site: Site, model: str, experiment: Experiment, *, salt: str
) -> Tested:
    """Every patient of site ``name`` of whom the list has a test label that can be read, however the method did.

    The data list says who counts, not the method: a volume that one method sets aside (too small for its crop, say),
    or that no model was tested on, is an empty prediction, which the metrics count with Dice 0 and the volume's
    diagonal. A label that cannot be read, or that the gate refuses (``data.checks``), is a truth for no method.
    """
    tester = POOL if POOL in federation.sites else name
    own = bench_of(federation, tester).site
    role = experiment.data.role
    keys = {_place(case): case.key for case in read_datalist(own.data_list(role), salt=own.salt)["test"]}
    scores = _scores(federation, tester, model)
    volumes: dict[str, list[CaseScore]] = {}
    unpredicted = 0
    for case in read_datalist(site.data_list(role), salt=site.salt)["test"]:
        if case.label is None:
            continue
        score = scores.get(keys.get(_place(case), ""))
        if score is None:
            score = failure(case, site, experiment)
            unpredicted += score is not None
        if score is not None:
            volumes.setdefault(case.patient, []).append(CaseScore(key="", patient="", structures=score.structures))
    return Tested(
        patients=[plain(per_patient(of_patient)[0]) for of_patient in volumes.values()],
        keys=[case_key(salt, f"{name}:{patient}") for patient in volumes],
        unpredicted=unpredicted,
    )


def failure(case: Case, site: Site, experiment: Experiment) -> CaseScore | None:
    """The score of an empty prediction of ``case``; None where its label is no truth, whatever the method's crop."""
    assert case.label is not None
    # the label's own grid: what a method resamples to must not decide who counts
    data = experiment.data.model_copy(update={"spacing": (None, None, None), "longest_edge": None})
    try:
        grid = read_header(case.label, data=data, budget_mb=site.volume_budget_mb)
        check_stream(case.label)
        voxels = read_voxels(case.label)
        check_label(voxels, case, classes=data.classes)
    except (CaseRejected, OSError) as error:
        what = error.reason if isinstance(error, CaseRejected) else "file cannot be read"
        logger.warning("case %s counts for no method: %s", case.key, what)
        return None
    truth = np.rint(voxels).astype(np.uint8)
    structures = score_structures(
        np.zeros_like(truth), truth, spacing=grid.spacing, labels=data.labels, annotated=case.annotated_labels
    )
    return CaseScore(key=case.key, patient="", structures=structures)


def plain(score: CaseScore) -> dict[str, dict[str, float | None]]:
    """A patient's figures as a result keeps them; None where a structure does not count."""
    return {
        name: {"dice": _rounded(one.dice, 5), "hd95": _rounded(one.hd95, 3), "failures": float(one.failures)}
        for name, one in score.structures.items()
    }


def figures_of(patients: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
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


def bench_of(federation: InProcessFederation, site: str, stage: str = "evaluation") -> Bench:
    """The bench on which the site trains and tests its models in ``stage``."""
    return cast(Bench, cast(Any, federation.learner(site, stage)).bench)


def _scores(federation: InProcessFederation, tester: str, model: str) -> dict[str, CaseScore]:
    """Volume's key -> score, of the models that the site tested; empty where it tested none."""
    if tester in federation.declined.get("evaluation", {}):
        return {}
    file = bench_of(federation, tester).folder / "test_scores.json"
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return {one["key"]: from_plain(one) for one in content["models"][model]["volumes"]}


def _place(case: Case) -> Path:
    """By which a site's list and the pool's, which name it otherwise, know the same volume."""
    return case.image.resolve()


def _rounded(value: float, places: int) -> float | None:
    return None if math.isnan(value) else round(value, places)
