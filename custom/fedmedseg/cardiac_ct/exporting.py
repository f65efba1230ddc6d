"""One of a run's networks, for one task, as MONAI's own SwinUNETR or DynUNet."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DynUNet, SwinUNETR
from torch import nn

from fedmedseg.cardiac_ct.foundation import Foundation
from fedmedseg.cardiac_ct.models import CNN, TRANSFORMER, answered_anew
from fedmedseg.cardiac_ct.network import (
    build_last_layer,
    build_student,
    build_teacher,
    channels,
    dynunet,
    load_parameters,
    swin_unetr,
)
from fedmedseg.cardiac_ct.plan import STUDENT, TEACHER, TRANSFER
from fedmedseg.cardiac_ct.prediction import Which, held
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import SwinUNETRSection
from fedmedseg.data.tasks import TASKS
from fedmedseg.export.network import NETS, NEW_LAYER, Exportable
from fedmedseg.segmentation.prediction import Origin

CHANNELS = ("image", "structures of the heart, as numbers 0 to 7")


def exportable(foundation: Foundation, *, which: Which | None = None, task: str | None = None) -> Exportable:
    """The network ``which`` of a file with the head of ``task``; unset: the only one there is.

    Raises:
        ConfigurationError: no such network or task, or several tasks of which none is named.
    """
    experiment, found = foundation.experiment, held(foundation, which)
    if task is None and len(found.tasks) == 1:
        task = found.tasks[0]
    if task not in found.tasks:
        raise ConfigurationError(
            "--task",
            got=task or "none",
            expected=f"one of {', '.join(found.tasks)}, which the file's {found.which} answers",
            remedy="name the head to export; a file is written for each",
        )
    points = TASKS[task].kind == "points"
    trained_in = _trained_in(foundation, found.which, task)
    before, taken_over = _before(experiment, trained_in)
    build = _student if found.which == TRANSFORMER else _cnn
    network, definition = build(foundation, task)
    return Exportable(
        network=network.eval(),
        definition=definition,
        data=experiment.data,
        channels=CHANNELS[: channels(experiment)],
        labels=dict(enumerate(TASKS[task].names, start=1)),
        activation="sigmoid" if points and experiment.wing.landmarks == "heatmaps" else "softmax",
        shape=tuple(experiment.data.crop if found.which == TRANSFORMER else experiment.wing.teacher.size),
        whole=found.which == CNN,
        overlap=experiment.segmentation.overlap,
        origin=Origin(
            study=experiment.study,
            system=experiment.system,
            model=found.which,
            experiment=experiment.digest,
            run=foundation.run,
            tensors=content_sha256(foundation.tensors),
        ),
        trained_in=trained_in,
        marks=("heat maps" if experiment.wing.landmarks == "heatmaps" else "spheres") if points else "structures",
        before=before,
        taken_over=taken_over,
    )


def _trained_in(foundation: Foundation, which: Which, task: str) -> tuple[str, ...]:
    """The stages that train the layers which answer ``task``: a new last layer's own, where it has one."""
    if task == answered_anew(foundation.experiment, foundation.tensors, TRANSFORMER if which == TRANSFORMER else CNN):
        return (NEW_LAYER,)
    return ("distillation", "head_tuning") if which == TRANSFORMER else (f"teacher_{task}",)


def _before(experiment: Experiment, stages: tuple[str, ...]) -> tuple[str, bool]:
    """What the networks were before the study that ``stages`` trained them in, and whether it took them over as such.

    The first of the stages trains the whole network; those after it its heads.
    """
    start = experiment.wing.start
    if start is None or stages == (NEW_LAYER,):
        return "", False
    named = f"networks trained before this study ({start[:16]})"
    if experiment.stages[stages[0]].rounds:
        return f"begun from {named}", False
    if any(experiment.stages[stage].rounds for stage in stages[1:]):
        return f"its heads tuned on {named}", True
    return f"taken over unchanged from {named}", True


def _student(foundation: Foundation, task: str) -> tuple[nn.Module, dict[str, Any]]:
    """MONAI's SwinUNETR, whose output block is the task's head, or the new layer that answers it."""
    experiment = foundation.experiment
    student = build_student(experiment)
    load_parameters(student, foundation.tensors, STUDENT)
    moved = task == answered_anew(experiment, foundation.tensors, TRANSFORMER)
    last = _last(foundation, TRANSFORMER) if moved else student.heads[task]
    definition = {"_target_": f"{NETS}SwinUNETR", **_swin(experiment, task)}
    network = SwinUNETR(**_swin(experiment, task))
    network.load_state_dict(
        student.trunk.state_dict() | {f"out.{name}": tensor for name, tensor in last.state_dict().items()}
    )
    return network, definition


def _cnn(foundation: Foundation, task: str) -> tuple[nn.Module, dict[str, Any]]:
    """MONAI's DynUNet, which in evaluation gives its finest output alone."""
    experiment = foundation.experiment
    moved = task == answered_anew(experiment, foundation.tensors, CNN)
    source = experiment.wing.transfer.cnn if moved else task
    teacher = build_teacher(experiment, source)
    load_parameters(teacher, foundation.tensors, f"{TEACHER}{source}.")
    if moved:
        # the deep supervision's levels have the source's classes and are not read in evaluation
        arguments = dynunet(experiment, source) | {"deep_supervision": False, "out_channels": TASKS[task].classes}
        network = DynUNet(**arguments)
        kept = {n: t for n, t in teacher.state_dict().items() if n in network.state_dict() and "output_block" not in n}
        last = {f"output_block.{name}": tensor for name, tensor in _last(foundation, CNN).state_dict().items()}
        network.load_state_dict(kept | last)
        return network, {"_target_": f"{NETS}DynUNet", **arguments}
    return teacher, {"_target_": f"{NETS}DynUNet", **dynunet(experiment, task)}


def _last(foundation: Foundation, backbone: str) -> nn.Module:
    last = build_last_layer(foundation.experiment, backbone)
    load_parameters(last, foundation.tensors, f"{TRANSFER}{backbone}.")
    return last


def _swin(experiment: Experiment, task: str) -> dict[str, Any]:
    assert isinstance(experiment.network, SwinUNETRSection)
    return {**swin_unetr(experiment.network, channels=channels(experiment)), "out_channels": TASKS[task].classes}
