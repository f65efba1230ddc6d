"""The networks of one study with given weights, and how each predicts a scan: for training stages and the test."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from monai.networks.nets import DynUNet
from torch import nn

from fedmedseg.cardiac_ct.batches import Batch
from fedmedseg.cardiac_ct.inference import predict_patches, predict_whole
from fedmedseg.cardiac_ct.network import (
    Student,
    build_last_layer,
    build_student,
    build_teacher,
    channels,
    load_parameters,
)
from fedmedseg.cardiac_ct.objective import Terms, student_terms, teacher_terms
from fedmedseg.cardiac_ct.plan import STUDENT, TEACHER, TRANSFER
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.seeding import derive_seed
from fedmedseg.data.site import Site
from fedmedseg.data.tasks import TASKS
from fedmedseg.networks.timing import InferenceTrial, StepTrial, Work, choose

CNN, TRANSFORMER, UNTRAINED = "cnn", "student", "untrained"
"""Names of the models in reports."""
Tensors = Mapping[str, torch.Tensor]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def answered_anew(experiment: Experiment, tensors: Tensors, backbone: str) -> str | None:
    """The task that the new last layer on ``backbone`` answers, in place of any head or CNN of that task.

    None where ``tensors`` hold no such layer.
    """
    held = any(name.startswith(f"{TRANSFER}{backbone}.") for name in tensors)
    return experiment.wing.transfer.task if held else None


class Networks:
    """Builds what is asked for, with its tensors out of ``tensors``, by their names on the wire."""

    def __init__(
        self, *, experiment: Experiment, site: Site, tensors: Tensors, aborted: Callable[[], bool] = lambda: False
    ) -> None:
        self.experiment, self.site, self.tensors, self.aborted = experiment, site, tensors, aborted

    def teacher(self, task: str) -> DynUNet:
        """The CNN of ``task``.

        Raises:
            FedMedSegError: its tensors are not there (reason MISSING_TENSORS).
        """
        return self._loaded(build_teacher(self.experiment, task), f"{TEACHER}{task}.")

    def student(self) -> Student:
        """The transformer. Raises as ``teacher`` does."""
        return self._loaded(build_student(self.experiment), STUDENT)

    def last_layer(self, backbone: str) -> nn.Module:
        """The new last layer on ``backbone``. Raises as ``teacher`` does."""
        return self._loaded(build_last_layer(self.experiment, backbone), f"{TRANSFER}{backbone}.")

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name begins with ``prefix``."""
        return any(name.startswith(prefix) for name in self.tensors)

    def way(self, work: Work, network: Student | DynUNet) -> ComputeChoice:
        """How ``network`` is computed here (``networks.timing``), timed on noise where the study leaves it open."""
        section, data = self.experiment.segmentation, self.experiment.data
        whole = isinstance(network, DynUNet)
        edges = self.experiment.wing.teacher.size if whole else data.crop
        batch = self.experiment.wing.teacher.batch if whole else section.batch
        shape = (batch if work == "supervised" else 1, channels(self.experiment), *edges)
        return choose(
            self.experiment,
            work=work,
            shape=shape,
            trial=lambda: _trial(work, copy.deepcopy(network), shape, self.experiment, self.site.device),
            cache=self.site.cache,
            device=self.site.device,
            aborted=self.aborted,
        )

    def predict_cnn(self) -> Callable[[np.ndarray, Sequence[str]], dict[str, torch.Tensor]]:
        """Probabilities by task from the tasks' CNNs, and of the task of transfer from the new layer on a CNN."""
        known = [task for task in self.experiment.wing.tasks if self.has(f"{TEACHER}{task}.")]
        built = {task: self.teacher(task).to(self.site.device) for task in known}
        ways = {task: self.way("inference", teacher) for task, teacher in built.items()}
        anew = answered_anew(self.experiment, self.tensors, CNN)
        last = self.last_layer(CNN).to(self.site.device) if anew is not None else None

        def predict(inputs: np.ndarray, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
            found = {}
            for task in tasks:
                moved = task == anew
                source = self.experiment.wing.transfer.cnn if moved else task
                if source in built:
                    found[task] = predict_whole(
                        built[source],
                        inputs,
                        task=task,
                        size=self.experiment.wing.teacher.size,
                        landmarks=self.experiment.wing.landmarks,
                        device=self.site.device,
                        choice=ways[source],
                        last=last if moved else None,
                    )
            return found

        return predict

    def predict_student(
        self, *, untrained: bool = False
    ) -> Callable[[np.ndarray, Sequence[str]], dict[str, torch.Tensor]]:
        """Probabilities by task from the student, and of the task of transfer from the new layer on it.

        ``untrained``: with the weights that the study's seed gives.
        """
        student = build_student(self.experiment) if untrained else self.student()
        student.to(self.site.device)
        way = self.way("inference", student)
        heads: dict[str, Callable[[torch.Tensor], torch.Tensor]] = dict(student.heads.items())
        anew = answered_anew(self.experiment, self.tensors, TRANSFORMER)
        if anew is not None:
            last = build_last_layer(self.experiment, TRANSFORMER) if untrained else self.last_layer(TRANSFORMER)
            heads[anew] = last.to(self.site.device)

        def predict(inputs: np.ndarray, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
            asked = {task: heads[task] for task in tasks if task in heads}
            if not asked:
                return {}
            x, y, z = self.experiment.data.crop
            return predict_patches(
                student,
                inputs,
                heads=asked,
                crop=(x, y, z),
                overlap=self.experiment.segmentation.overlap,
                landmarks=self.experiment.wing.landmarks,
                device=self.site.device,
                choice=way,
            )

        return predict

    def _loaded(self, network: NetworkT, prefix: str) -> NetworkT:
        given = {name for name in self.tensors if name.startswith(prefix)}
        missing = {prefix + name for name, _ in network.named_parameters()} - given
        if missing:
            raise FedMedSegError(
                prefix.rstrip("."),
                got=f"{len(missing)} tensors missing",
                expected="the network that an earlier stage trained",
                remedy="see why that stage failed",
                reason=Reason.MISSING_TENSORS,
            )
        load_parameters(network, self.tensors, prefix)
        return network


def _trial(
    work: Work, network: Student | DynUNet, shape: tuple[int, ...], experiment: Experiment, device: str
) -> StepTrial | InferenceTrial:
    """A step, or a forward pass, of a copy of ``network`` on noise."""
    if work == "inference":
        return InferenceTrial(network=_first_head(network.to(device).eval()), windows=torch.randn(shape), device=device)
    tasks = [experiment.wing.tasks[0]] if isinstance(network, DynUNet) else list(experiment.wing.tasks)
    images = torch.randn(shape)
    targets = {task: torch.randint(TASKS[task].classes, (shape[0], *shape[2:])) for task in tasks}
    if isinstance(network, DynUNet):
        # any of the tasks costs the same
        targets = {task: torch.zeros_like(target) for task, target in targets.items()}
    batch = Batch(images, targets, {}, {})

    def terms_of(choice: ComputeChoice) -> Terms:
        if isinstance(network, DynUNet):
            return teacher_terms(network, tasks[0], choice=choice, device=device)
        return student_terms(network, temperature=1.0, choice=choice, device=device)

    def loss(choice: ComputeChoice) -> torch.Tensor:
        return torch.stack(list(terms_of(choice)(batch).values())).sum()

    return StepTrial(networks=[network], loss=loss, seed=derive_seed(experiment.seed, "compute", work))


class _first_head(nn.Module):
    """A network that answers with one tensor, as timing expects it."""

    def __init__(self, network: Student | DynUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.network(images)
        return next(iter(found.values())) if isinstance(found, dict) else found
