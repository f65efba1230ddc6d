"""Test scores as plain data: for the site's own file, for resuming, and as the few means that leave the site."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.config import Experiment
from fedmedseg.reporting.metrics import CaseScore, StructureScore, per_patient, summarise

FORMAT = 1


def to_plain(score: CaseScore) -> dict[str, Any]:
    """A score as dictionaries and numbers; nan becomes None."""
    return {
        "key": score.key,
        "patient": score.patient,
        "structures": {
            name: {"dice": _or_none(one.dice), "hd95": _or_none(one.hd95), "failures": one.failures}
            for name, one in score.structures.items()
        },
    }


def from_plain(content: Mapping[str, Any]) -> CaseScore:
    """The inverse of ``to_plain``."""
    return CaseScore(
        key=content["key"],
        patient=content["patient"],
        structures={
            name: StructureScore(dice=_or_nan(one["dice"]), hd95=_or_nan(one["hd95"]), failures=one["failures"])
            for name, one in content["structures"].items()
        },
    )


def metrics_of(scores: Mapping[str, Sequence[CaseScore]], *, least: int = 0) -> dict[str, float]:
    """Means over patients as flat figures: dice, hd95 (mm) and failures (volumes) per model and structure.

    ``spread/dice`` and ``spread/hd95`` are the sample standard deviations over the same patients. A structure that no
    patient counts, or fewer than ``least`` (the site's ``privacy.min_count``), has failures but no other figure: a mean
    over one patient is that patient's own, and of two the mean and the spread give both.
    """
    figures: dict[str, float] = {}
    for row in summarise({model: per_patient(cases) for model, cases in scores.items()}):
        place = f"{row.model}/{row.structure}"
        if row.n >= max(1, least):
            figures[f"dice/{place}"] = row.dice
            figures[f"hd95/{place}"] = row.hd95
            spreads = {"dice": row.dice_sd, "hd95": row.hd95_sd}
            figures |= {f"spread/{what}/{place}": sd for what, sd in spreads.items() if math.isfinite(sd)}
        figures[f"failures/{place}"] = float(row.failures)
    return figures


def write_scores(path: Path, scores: Mapping[str, Sequence[CaseScore]], *, experiment: Experiment) -> None:
    """Write every volume's and patient's score and their summary as JSON, atomically. Cases are salted hashes.

    Raises:
        OSError: disk full or not writable.
    """
    patients = {model: per_patient(cases) for model, cases in scores.items()}
    rows = [
        {name: _or_none(value) if isinstance(value, float) else value for name, value in asdict(row).items()}
        for row in summarise(patients)
    ]
    content = {
        "format": FORMAT,
        "study": experiment.study,
        "experiment": experiment.digest,
        "units": {"dice": "0..1", "hd95": "mm"},
        "models": {
            model: {
                "volumes": [to_plain(case) for case in cases],
                "patients": [to_plain(case) for case in patients[model]],
                "summary": [row for row in rows if row["model"] == model],
            }
            for model, cases in scores.items()
        },
    }
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False).encode())


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
