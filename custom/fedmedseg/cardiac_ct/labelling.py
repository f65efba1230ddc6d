"""Pseudo-labels at a site: every CNN on every scan that nobody annotated, kept on its disk where the gate lets them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedmedseg.cardiac_ct.answers import found_in, log_probabilities
from fedmedseg.cardiac_ct.gate import Answer, passed
from fedmedseg.cardiac_ct.lessons import annotated, inputs_of
from fedmedseg.cardiac_ct.models import Networks
from fedmedseg.cardiac_ct.plan import TEACHER
from fedmedseg.cardiac_ct.pseudo_labels import ScanLabels, load_labels, save_index, save_labels
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.core.training import Aborted
from fedmedseg.data.volumes import Volumes


def label_scans(task: Task, *, networks: Networks, scans: Volumes) -> dict[str, float]:
    """Label ``scans``; a scan that these CNNs labelled before is not labelled again. Figures of what was kept.

    Raises:
        Aborted: the federation asked to stop; the task continues when it is given again.
        DataError: there is no CNN (reason NO_CASES).
    """
    experiment = networks.experiment
    names = [name for name in experiment.wing.tasks if networks.has(f"{TEACHER}{name}.")]
    if not names:
        raise DataError(
            "pseudo-labels",
            got="no CNN of this site's own",
            expected="at least one",
            remedy="annotate a task at this site, or share the CNNs",
            reason=Reason.NO_CASES,
        )
    teachers = content_sha256({name: t for name, t in networks.tensors.items() if name.startswith(TEACHER)})
    predict = networks.predict_cnn()
    drawn = {
        name: frozenset(found.indices)
        for name in (names if experiment.wing.distillation.real_labels else ())
        if (found := annotated(scans, name, experiment.wing.radius)) is not None
    }
    every: list[ScanLabels] = []
    for index, case in enumerate(scans.cases):
        if task.aborted():
            raise Aborted
        labels = load_labels(task.state, case.key, teachers=teachers)
        if labels is None:
            asked = [name for name in names if index not in drawn.get(name, ())]
            labels = judged(predict(inputs_of(scans, index, experiment), asked), volumes=scans, index=index)
            save_labels(task.state, case.key, labels, teachers=teachers)
        every.append(labels)
        task.progress.update("labelling scans", index + 1, len(scans))
    kept = {case.key: labels.kept.keys() for case, labels in zip(scans.cases, every, strict=True)}
    save_index(task.state, kept, teachers=teachers)
    figures = {"scans": float(len(scans))}
    for name in names:
        sure = [labels.kept[name].confidence for labels in every if name in labels.kept]
        figures[f"kept/{name}"] = float(len(sure))
        figures[f"refused/{name}"] = float(sum(name in labels.refused for labels in every))
        if sure:
            figures[f"confidence/{name}"] = sum(sure) / len(sure)
    return figures


def judged(probabilities: Mapping[str, torch.Tensor], *, volumes: Volumes, index: int) -> ScanLabels:
    """The answers to one scan that pass the gate: from probabilities (C, X, Y, Z) by task."""
    wing = volumes.experiment.wing
    x, y, z = volumes.spacing(index)
    found = {name: found_in(one, name, wing.landmarks) for name, one in probabilities.items()}
    answers = {
        name: Answer(
            points=None if one.points is None else volumes.to_world(index, one.points),
            volume=0.0 if one.mask is None else float((one.mask > 0).sum()) * x * y * z,
            confidence=one.confidence,
        )
        for name, one in found.items()
    }
    kept, refused = passed(answers, wing.gate.limits, keep=wing.gate.keep)
    soft = wing.distillation.targets == "soft"
    return ScanLabels(
        kept={name: found[name] for name in kept},
        refused=refused,
        soft={name: log_probabilities(probabilities[name]) for name in kept} if soft else {},
    )
