"""A run's networks as one file that others start from: tensors with the settings that build and feed them.

The paper publishes its model as a foundation. A file holds the student, the CNNs, or all of a run, and the study's own
settings; it names no path and nothing of a patient.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fedmedseg.cardiac_ct.plan import STUDENT, TEACHER, TRANSFER, initial_shared
from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import CheckpointError, content_sha256
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.data_settings import MOST_LABELS
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.wire import Schema
from fedmedseg.data.tasks import TASKS

FORMAT = 1
KIND = "cardiac_ct networks"
What = Literal["student", "cnn", "all"]
PREFIXES: Mapping[What, tuple[str, ...]] = {
    "student": (STUDENT, f"{TRANSFER}student."),
    "cnn": (TEACHER, f"{TRANSFER}cnn."),
    "all": ("",),
}


@dataclass(frozen=True)
class Foundation:
    """What such a file holds."""

    experiment: Experiment
    """The study that trained it."""
    tensors: Mapping[str, torch.Tensor]
    """By their names on the wire."""
    run: str = ""
    """The run that trained them; empty where the file names none."""

    @property
    def digest(self) -> str:
        """What a study that starts from it names as ``cardiac_ct.start``."""
        return content_sha256(self.tensors)


def save_foundation(
    path: Path, tensors: Mapping[str, torch.Tensor], *, experiment: Experiment, what: What = "all", run: str = ""
) -> None:
    """Write what ``what`` says of ``tensors``, which ``run`` trained.

    Raises:
        ConfigurationError: there is nothing of it.
        OSError: disk full or not writable.
    """
    chosen = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIXES[what])}
    if not chosen:
        raise ConfigurationError("networks", got="none", expected=f"a run that trained {what}")
    settings = experiment.model_dump(mode="json", exclude={"resume"})
    checkpoint.save(path, {"format": FORMAT, "kind": KIND, "settings": settings, "run": run, "tensors": chosen})


def save_models(folder: Path, tensors: Mapping[str, torch.Tensor], *, experiment: Experiment, run: str) -> None:
    """Write ``student.safetensors`` and ``cnn.safetensors``, where there is any of them."""
    kinds: tuple[What, ...] = ("student", "cnn")
    for what in kinds:
        if any(name.startswith(PREFIXES[what]) for name in tensors):
            save_foundation(folder / f"{what}.safetensors", tensors, experiment=experiment, what=what, run=run)


def load_foundation(path: Path) -> Foundation:
    """Read a file of ``save_foundation``, or the shared model that a run leaves at its server.

    The settings are validated as an experiment's are, so a file from elsewhere cannot name anything but the networks
    this package knows.

    Raises:
        ConfigurationError: no such file, one of another kind, or settings that are not valid.
        FedMedSegError: its tensors are not those networks', or not finite.
    """
    try:
        tree = checkpoint.load_file(path)
    except CheckpointError as error:
        raise _wrong(path, f"{error.got}") from None
    if not isinstance(tree, Mapping) or tree.get("kind", KIND) != KIND or tree.get("format") != FORMAT:
        raise _wrong(path, "a file of another kind")
    if "settings" not in tree:
        raise _wrong(path, "no shared model of a run of this version: there are no settings of a study in it")
    experiment = parse_experiment(tree["settings"], source=path.name)
    if experiment.system != "cardiac_ct":
        raise _wrong(path, f"networks of {experiment.system}")
    tensors = dict(tree["tensors"])
    expected = initial_shared(experiment)
    unknown = sorted(name for name in tensors if name not in expected)
    if unknown:
        raise _wrong(path, f"{len(unknown)} tensor(s) that its settings do not build, first {unknown[0]}")
    Schema({name: expected[name] for name in tensors}).require(tensors, sender=path.name)
    return Foundation(experiment=experiment, tensors=tensors, run=str(tree.get("run", "")))


def tuning_study(
    foundation: Foundation,
    *,
    task: str,
    backbone: str,
    steps: int,
    learning_rate: float,
    patients: int | None,
    number: int = 1,
) -> Experiment:
    """The study that trains a new last layer for ``task`` on a foundation, and tests it; nothing else.

    ``number`` is what label maps call the task where they mark it; other numbers in them are nobody's. A task of the
    file is answered by the new layer from then on.

    Raises:
        ConfigurationError: the file has no such backbone, or a setting is not valid.
    """
    prefixes = (STUDENT,) if backbone == "student" else (TEACHER,)
    if not any(name.startswith(prefixes) for name in foundation.tensors):
        raise ConfigurationError(
            "backbone",
            got=backbone,
            expected="a network that the file holds",
            remedy="name the other with --backbone, or another file",
        )
    settings: dict[str, Any] = foundation.experiment.model_dump(mode="json", exclude={"resume"})
    wing = settings["cardiac_ct"]
    for unread in ("gate", "distillation", "transfer", "head_steps", "share", "head_mean"):
        wing.pop(unread)
    known = [name.split(".")[1] for name in foundation.tensors if name.startswith(TEACHER)]
    wing["start"] = foundation.digest
    wing["transfer"] = {
        "task": task,
        "backbones": [backbone],
        "steps": steps,
        "learning_rate": learning_rate,
        "patients": patients,
        **({"cnn": known[0]} if known else {}),
    }
    settings["stages"] = {stage: {"rounds": 0} for stage in settings["stages"]}
    settings["stages"] |= {stage: {"rounds": 1} for stage in ("transfer", "evaluation")}
    settings["data"] |= {"phantom": None, "labels": _labels(task, number)}
    settings["data"] |= {"labelled_fraction": 1.0, "labelled_patients": None}
    settings["study"] = f"{settings['study']}-{task}"[:63]
    return parse_experiment(settings, source="tuning")


def number_in(datalist: Path, task: str) -> int:
    """What the label maps of a data list call ``task``, by the names that the list gives its labels; 1 without names.

    Raises:
        ConfigurationError: no list, or it names its labels and none of them so.
    """
    try:
        named = json.loads(datalist.read_text(encoding="utf-8")).get("labels")
    except (OSError, ValueError, AttributeError):
        raise ConfigurationError("--list", got=datalist.name, expected="a data list (JSON)") from None
    if TASKS[task].kind != "mask" or not isinstance(named, dict):
        return 1
    name = TASKS[task].names[0]
    for number, given in named.items():
        if given == name and str(number).isdigit():
            return int(number)
    raise ConfigurationError(
        "--label",
        got=f"none, and a list whose labels are {named}",
        expected=f"one that the list calls {name}",
        remedy=f"say which number marks {name}, as in --label 1",
    )


def _labels(task: str, number: int) -> dict[int, str]:
    """Every number that a label map may hold: ``number`` is the task's where label maps mark it, others nobody's."""
    own = {number: TASKS[task].names[0]} if TASKS[task].kind == "mask" else {}
    return {other: f"label {other}" for other in range(1, MOST_LABELS + 1)} | own


def _wrong(path: Path, got: str) -> ConfigurationError:
    return ConfigurationError(
        path.name,
        got=got,
        expected="networks of a cardiac_ct run",
        remedy="write one with `fedmedseg foundation export`, or take student.safetensors of a site's models_dir",
    )
