"""The fused models of a study at a site that took no part: its volumes checked, scored in their own space, compared."""

from __future__ import annotations

import math
import secrets
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.data.cache import Cache
from fedmedseg.data.checks import CaseRejected, admit, unlogged_cases
from fedmedseg.data.datalist import Case, read_datalist
from fedmedseg.reporting.metrics import CaseScore, per_patient
from fedmedseg.reporting.paired import Paired, paired
from fedmedseg.segmentation.models import InferenceModel, load_for_inference
from fedmedseg.segviz.fusion import How, score_fused
from fedmedseg.segviz.publication import published_models

MEAN = "mean"
"""Name under which the mean over a patient's structures is compared."""
SCORED = ("training", "validation", "test")


@dataclass(frozen=True)
class External:
    """What one site's labelled volumes said of fused models."""

    patients: list[CaseScore]
    """A score per patient, in the order of the data list."""
    set_aside: dict[str, int] = field(default_factory=dict)
    """Reason -> number of volumes that could not be used."""


def experts_at(paths: Sequence[Path], *, experiment: Experiment) -> list[InferenceModel]:
    """The models in ``paths``: model files, and run folders ``models`` with what sites published.

    Raises:
        ConfigurationError: nothing there, one model twice, or an organ that the study does not name.
        FedMedSegError: tensors that do not suit the network.
        CheckpointError: a damaged file.
    """
    experts: list[InferenceModel] = []
    seen: dict[tuple[str, ...], str] = {}
    for path in paths:
        if not path.exists():
            raise ConfigurationError(
                "--models", got=f"nothing at {path}", expected="a site's model file, or a run's folder `models`"
            )
        found = published_models(path, experiment=experiment).values() if path.is_dir() else [load_for_inference(path)]
        for expert in found:
            if expert.system != experiment.system:
                raise ConfigurationError(
                    "--models",
                    got=f"{path.name}, a model of {expert.system}",
                    expected=f"models of {experiment.system}: of other systems each model knows all structures",
                    remedy="use `fedmedseg predict` with it",
                )
            foreign = set(expert.data.labels.values()) - set(experiment.data.labels.values())
            if foreign:
                raise ConfigurationError(
                    path.name,
                    got=f"a model of {', '.join(sorted(foreign))}",
                    expected=f"models of {', '.join(experiment.data.labels.values())}, the study's structures",
                    remedy="name the experiment.yaml of the study that the model is of",
                )
            same = content_sha256(expert.model.state_dict()), *expert.data.labels.values()
            if seen.setdefault(same, str(path)) != str(path):
                raise ConfigurationError(
                    "--models",
                    got=f"{seen[same]} and {path}, which hold the same model",
                    expected="every model once: twice it would count twice",
                    remedy="leave one of them out",
                )
            experts.append(expert)
    return experts


def labelled_cases(path: Path, *, data: DataSection, budget_mb: int) -> tuple[list[Case], dict[str, int]]:
    """Every labelled case of a data list, whatever its section, that passes the gate; and why others did not.

    Raises:
        ConfigurationError: no such list, or an invalid one.
        DataError: no case is left (reason NO_CASES).
    """
    # of this call alone: nothing is kept that could be told from it
    listed = read_datalist(path, salt=secrets.token_hex(32))
    cases = [case for section in SCORED for case in listed[section] if case.label is not None]
    with tempfile.TemporaryDirectory() as folder, unlogged_cases():
        admission = admit(cases, data=data, budget_mb=budget_mb, cache=Cache(folder=Path(folder)))
    reasons = list(admission.quarantined.values())
    if not admission.valid:
        raise DataError(
            path.name,
            got=f"{len(cases)} labelled cases, none of which can be used",
            expected="at least one",
            remedy="see `fedmedseg data check`, which names the files and their faults",
            reason=Reason.NO_CASES,
        )
    return admission.valid, {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def evaluate(
    experts: Sequence[InferenceModel],
    cases: Sequence[Case],
    *,
    labels: Mapping[int, str],
    among: Mapping[int, str] | None = None,
    how: How = "probability",
    device: str = "cpu",
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> External:
    """Dice and HD95 in mm per patient and structure on the files' own grids; a case no model can take is set aside.

    Raises:
        ConfigurationError: an organ that no model predicts.
        DataError: no case is left (reason NO_CASES).
    """
    scores: list[CaseScore] = []
    aside: dict[str, int] = {}
    for done, case in enumerate(cases, start=1):
        try:
            scores += score_fused(experts, [case], labels=labels, among=among, how=how, device=device)
        except CaseRejected as rejected:
            aside[rejected.reason] = aside.get(rejected.reason, 0) + 1
        tick(done, len(cases))
    if not scores:
        raise DataError("cases", got="none that the models can take", expected="at least one", reason=Reason.NO_CASES)
    return External(patients=per_patient(scores), set_aside=aside)


def compare(first: Sequence[CaseScore], second: Sequence[CaseScore], structures: Sequence[str]) -> dict[str, Paired]:
    """Dice of the patients that both have, paired: per structure, and of each patient's mean (``MEAN``)."""
    others = {score.patient: score for score in second}
    pairs = [(score, others[score.patient]) for score in first if score.patient in others]

    def of(dice: Callable[[CaseScore], float]) -> Paired:
        return paired([dice(one) for one, _ in pairs], [dice(other) for _, other in pairs])

    return {name: of(partial(_dice, structure=name)) for name in structures} | {MEAN: of(patient_mean)}


def patient_mean(score: CaseScore) -> float:
    """Mean Dice over the structures that count in a patient; nan where none does."""
    counted = [one.dice for one in score.structures.values() if one.counted]
    return statistics.fmean(counted) if counted else math.nan


def _dice(score: CaseScore, structure: str) -> float:
    return score.structures[structure].dice if structure in score.structures else math.nan
