"""What a run's networks say of one scan: a label map for each task, landmarks in mm of the world."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedmedseg.cardiac_ct.answers import found_in
from fedmedseg.cardiac_ct.evaluation import Predict
from fedmedseg.cardiac_ct.foundation import Foundation
from fedmedseg.cardiac_ct.lessons import stacked
from fedmedseg.cardiac_ct.models import CNN, TRANSFORMER, Networks, answered_anew
from fedmedseg.cardiac_ct.plan import STUDENT, TEACHER
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.federation_settings import ComputeSection
from fedmedseg.data.datalist import Case
from fedmedseg.data.landmarks import Place
from fedmedseg.data.preprocessing import Prepared, Steps, back_to_native, prepare_heart, prepare_image
from fedmedseg.data.site import Site
from fedmedseg.data.tasks import TASKS
from fedmedseg.segmentation.inference import label_map, mirrorings
from fedmedseg.segmentation.prediction import Answer, LabelMap, Origin

Which = Literal["student", "cnn"]


@dataclass(frozen=True)
class Held:
    """One of a file's networks, and the tasks it answers."""

    which: Which
    tasks: tuple[str, ...]


def held(foundation: Foundation, which: Which | None = None) -> Held:
    """The network ``which`` of a file; unset: the transformer where there is one, else the CNNs.

    Raises:
        ConfigurationError: the file has no such network.
    """
    experiment, tensors = foundation.experiment, foundation.tensors
    wing = experiment.wing
    moved = {name: [anew] if (anew := answered_anew(experiment, tensors, name)) else [] for name in (CNN, TRANSFORMER)}
    source = _has(foundation, f"{TEACHER}{wing.transfer.cnn}.")
    tasks: dict[Which, list[str]] = {
        "student": [*wing.tasks, *moved[TRANSFORMER]] if _has(foundation, STUDENT) else [],
        "cnn": [
            *(task for task in wing.tasks if _has(foundation, f"{TEACHER}{task}.")),
            *(moved[CNN] if source else []),
        ],
    }
    order: tuple[Which, ...] = ("student", "cnn") if which is None else (which,)
    for name in order:
        if tasks[name]:
            return Held(name, tuple(dict.fromkeys(tasks[name])))
    there = [name for name, found in tasks.items() if found]
    raise ConfigurationError(
        "--network",
        got=which or "a file without a whole network",
        expected=f"one that the file holds: {', '.join(there) or 'none is in it'}",
        remedy="name the other" if there else "use student.safetensors or cnn.safetensors of a site's models_dir",
    )


class TaskPredictor:
    """The transformer, or the CNNs, of a run.

    Of a task that marks voxels, and of points that the networks mark as spheres, there is a label map called after it;
    points have a place in mm besides. The heart's structures are zeros for a scan without that map, as in training.
    """

    def __init__(
        self, *, foundation: Foundation, device: str = "cpu", which: Which | None = None, flips: bool = False
    ) -> None:
        experiment = plainly_computed(foundation.experiment)
        self.experiment, self.device = experiment, device
        found = held(foundation, which)
        self.tasks = found.tasks
        placed = [task for task in self.tasks if TASKS[task].kind != "mask"]
        if flips and placed:
            raise ConfigurationError(
                "--flips",
                got=f"a model that answers {', '.join(placed)}",
                expected="one of calcification or vessels alone: a mirrored heart has its sides exchanged",
                remedy="leave --flips out",
            )
        self.data = experiment.data
        self.conditions = bool(experiment.wing.conditioning)
        self.names: Mapping[str, Mapping[int, str]] = {
            task: dict(enumerate(TASKS[task].names, start=1))
            for task in self.tasks
            if TASKS[task].kind != "points" or self._spheres
        }
        self.points = tuple(name for task in self.tasks if TASKS[task].kind == "points" for name in TASKS[task].names)
        self.origin = Origin(
            study=experiment.study,
            system=experiment.system,
            model=found.which,
            experiment=foundation.experiment.digest,
            run=foundation.run,
            tensors=content_sha256(foundation.tensors),
        )
        # compute settings are fixed above, so that nothing is timed and nothing is kept here
        with tempfile.TemporaryDirectory() as folder:
            networks = Networks(experiment=experiment, site=_here(Path(folder), device), tensors=foundation.tensors)
            predict: Predict = networks.predict_student() if found.which == TRANSFORMER else networks.predict_cnn()
        self._predict = mirrored(predict) if flips else predict

    def __call__(self, image: Path, *, heart: Path | None = None) -> Answer:
        """See ``segmentation.prediction.Predictor``."""
        case = Case(image=image, label=None, patient="", annotated_labels=None, key="", heart=heart)
        prepared = prepare_image(case, self.data)
        beside = prepare_heart(case, prepared.meta).arrays["heart"] if heart is not None and self.conditions else None
        found = self._predict(stacked(prepared.arrays["image"][None], beside, self.experiment), self.tasks)
        return Answer(maps=self._maps(found, prepared), points=self._points(found, prepared))

    @property
    def _spheres(self) -> bool:
        return bool(self.experiment.wing.landmarks == "spheres")

    def _maps(self, found: Mapping[str, torch.Tensor], prepared: Prepared) -> dict[str, LabelMap]:
        return {
            task: LabelMap(
                labels=label_map(back_to_native(found[task], prepared.meta)),
                names=names,
                solid=TASKS[task].kind != "points",
            )
            for task, names in self.names.items()
        }

    def _points(self, found: Mapping[str, torch.Tensor], prepared: Prepared) -> dict[str, Place | None]:
        placed: dict[str, Place | None] = {}
        for task in self.tasks:
            if TASKS[task].kind != "points":
                continue
            voxels = found_in(found[task], task, self.experiment.wing.landmarks).points
            assert voxels is not None
            world = Steps.of(prepared.meta).to_world(voxels)
            for name, (x, y, z) in zip(TASKS[task].names, world.tolist(), strict=True):
                placed[name] = None if np.isnan(x) else (x, y, z)
        return placed


def mirrored(predict: Predict) -> Predict:
    """The mean of what ``predict`` says of a scan and of its mirror images, each mirrored back."""
    ways = mirrorings(3)

    def mean(inputs: np.ndarray, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
        total: dict[str, torch.Tensor] = {}
        for axes in ways:
            for task, found in predict(np.flip(inputs, tuple(axes)), tasks).items():
                back = found.flip(axes)
                total[task] = total[task] + back if task in total else back
        return {task: found / len(ways) for task, found in total.items()}

    return mean


def plainly_computed(experiment: Experiment) -> Experiment:
    """The study with its networks computed in float32 as written: what a clock decides does not repeat to the byte."""
    return experiment.model_copy(update={"compute": ComputeSection.model_validate({})})


def _has(foundation: Foundation, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in foundation.tensors)


def _here(folder: Path, device: str) -> Site:
    return Site(
        name="here",
        state_root=folder,
        cache=folder,
        models=folder,
        device=device,
        datasets={},
        salt="",
        simulated=False,
    )
