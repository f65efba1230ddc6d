"""What this system sends in each of its stages, and the tensors its server starts from."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.wire import Part, StageContract

TAUGHT = ("hps", "ms", "calc")
TEACHER, STUDENT, TRANSFER = "teacher.", "student.", "transfer."
"""Beginnings of the shared tensors' names: ``teacher.<task>.``, ``student.trunk.``, ``student.heads.<task>.`` and
``transfer.<backbone>.``."""
HEADS = f"{STUDENT}heads."
NOTHING = Part(within=())

TRAINING_METRICS = ("loss", "loss/*", "cases/*", "without_heart", "set_aside")
LABELLING_METRICS = ("kept/*", "refused/*", "confidence/*", "scans", "without_heart", "set_aside")
TEST_METRICS = (
    "dice/*",
    "hd95/*",
    "spread/*",
    "failures/*",
    "distance/*",
    "missed/*",
    "points/*",
    "calcium/*",
    "cases",
    "set_aside",
    "without_heart",
)
COUNTS = (
    "cases",
    "cases/*",
    "kept/*",
    "refused/*",
    "scans",
    "set_aside",
    "failures/*",
    "missed/*",
    "points/*",
    "without_heart",
)


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. Scans, labels, points, pseudo-labels and optimisers never leave a site.

    A task's stage trains its CNN alone; pseudo-labelling sends the CNNs and returns figures; distillation trains the
    student; head tuning sends it and returns its heads; transfer returns the new last layers. With ``share: nothing``
    no tensor moves at all.
    """
    wing = experiment.wing
    networks = {"student": STUDENT, "cnn": f"{TEACHER}{wing.transfer.cnn}."}
    frozen = [within for name, within in networks.items() if name in wing.transfer.backbones]
    trained = {
        **{f"teacher_{task}": (Part(within=(f"{TEACHER}{task}.",)),) * 2 for task in TAUGHT},
        "pseudo_labelling": (Part(within=(TEACHER,)), NOTHING),
        "distillation": (Part(within=(STUDENT,)),) * 2,
        "head_tuning": (Part(within=(STUDENT,)), Part(within=(HEADS,))),
        "transfer": (Part(within=(*frozen, TRANSFER)), Part(within=(TRANSFER,))),
        "evaluation": (Part(), NOTHING),
    }
    metrics = {"pseudo_labelling": LABELLING_METRICS, "evaluation": TEST_METRICS}
    alone = wing.share == "nothing"
    # the mean over all sites takes every head of every site, as encrypted replies must all be alike
    apart = wing.head_mean == "trained" and not alone
    heads = tuple(f"{HEADS}{task}." for task in wing.tasks) if apart else ()
    sends: Literal["shared", "nothing"] = "nothing" if alone else "shared"
    return {
        stage: StageContract(
            sends=sends,
            returns="metrics" if alone or back == NOTHING else "shared",
            metrics=metrics.get(stage, TRAINING_METRICS),
            counts=COUNTS,
            sent=there,
            returned=back,
            separable=heads if back.holds(HEADS) else (),
        )
        for stage, (there, back) in trained.items()
    }


def made(experiment: Experiment) -> dict[str, bool]:
    """Which models this study has: each task's CNN, the student, and each backbone's new layer.

    Those whose stage has rounds, and of an earlier run's that the study starts from those that its stages use; of a
    study that only tests, all.
    """
    wing = experiment.wing
    rounds = {stage: section.rounds for stage, section in experiment.stages.items()}
    only_tests = not any(number for stage, number in rounds.items() if stage != "evaluation")
    frozen = wing.transfer.backbones if rounds["transfer"] else ()
    taken = {
        f"{TEACHER}{task}": only_tests
        or rounds["pseudo_labelling"] > 0
        or ("cnn" in frozen and task == wing.transfer.cnn)
        for task in wing.tasks
    }
    taken[STUDENT] = only_tests or rounds["head_tuning"] > 0 or "student" in frozen
    trained = {f"{TEACHER}{task}": rounds[f"teacher_{task}"] > 0 for task in wing.tasks}
    trained[STUDENT] = rounds["distillation"] > 0
    found = {name: trained[name] or (wing.start is not None and taken[name]) for name in trained}
    return found | {f"{TRANSFER}{name}": rounds["transfer"] > 0 for name in wing.transfer.backbones}


def anew(experiment: Experiment) -> tuple[str, ...]:
    """Beginnings of the names of tensors that this study trains from its own seed, whatever a file holds.

    A last layer of an earlier run may be another task's. CNNs and student of a file are continued.
    """
    return (TRANSFER,)


def fresh(experiment: Experiment) -> tuple[str, ...]:
    """Beginnings of the names of tensors that an earlier run's file need not hold: this study trains them itself."""
    stages_of = {f"{TEACHER}{task}.": f"teacher_{task}" for task in TAUGHT} | {STUDENT: "distillation"}
    return (*anew(experiment), *(name for name, stage in stages_of.items() if experiment.stages[stage].rounds))


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The shared tensors before the first round; the same wherever it is called, float32, on the CPU.

    Networks that the study neither trains nor starts from are not among them.
    """
    from fedmedseg.cardiac_ct.network import build_last_layer, build_student, build_teacher, parameters_of

    tensors: dict[str, torch.Tensor] = {}
    for name, there in made(experiment).items():
        if not there:
            continue
        kind, _, which = name.partition(".")
        if kind == "teacher":
            tensors |= parameters_of(build_teacher(experiment, which), f"{name}.")
        elif kind == "student":
            tensors |= parameters_of(build_student(experiment), name)
        else:
            tensors |= parameters_of(build_last_layer(experiment, which), f"{name}.")
    return tensors


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage; a scan to label and a test case count as one."""
    wing, rounds = experiment.wing, experiment.stages
    phantom = experiment.data.phantom
    scans, cases = (phantom.unlabeled + phantom.training, phantom.test) if phantom is not None else (1, 1)
    lengths = {
        **{f"teacher_{task}": wing.teacher.steps for task in TAUGHT},
        "distillation": experiment.segmentation.steps,
        "head_tuning": wing.head_steps,
        "transfer": wing.transfer.steps * len(wing.transfer.backbones),
    }
    per_round = {stage: math.ceil(steps / max(1, rounds[stage].rounds)) for stage, steps in lengths.items()}
    whole = {**per_round, "pseudo_labelling": scans, "evaluation": cases}
    return {stage: whole[stage] for stage in stages(experiment)}


def trained(experiment: Experiment) -> dict[str, Any]:
    """What the largest training stages compute, for preflight's estimate of memory.

    Stage to: how its network is built, its logits from a network and images, inputs (channels, *edges) of one item, and
    items in a step. The heads and new last layers train on networks that these stages hold, and need less.
    """
    from fedmedseg.cardiac_ct.network import build_student, build_teacher, channels, teacher_outputs

    wing = experiment.wing
    size, crop = (channels(experiment), *wing.teacher.size), (channels(experiment), *experiment.data.crop)
    found: dict[str, Any] = {
        f"teacher_{task}": (partial(build_teacher, experiment, task), teacher_outputs, size, wing.teacher.batch)
        for task in wing.tasks
    }
    found["distillation"] = (
        partial(build_student, experiment),
        lambda student, images: list(student(images).values()),
        crop,
        experiment.segmentation.batch,
    )
    return found


def copies(experiment: Experiment) -> dict[str, int]:
    """Copies of the network that a site's state holds at once, for preflight's estimate.

    Of an unfinished round weights and two moments. Where nothing is shared, every network of the study as well, each
    taken for the largest.
    """
    networks = sum(there for name, there in made(experiment).items() if not name.startswith(TRANSFER))
    return {"network": 3 + (networks if experiment.wing.share == "nothing" else 0)}


def scan_bytes(experiment: Experiment) -> float:
    """What a site remembers of a voxel of each scan as pseudo-labels, for preflight's estimate.

    A bit for each class of the tasks that mark voxels; where the study distils softly, every class in float16.
    """
    from fedmedseg.data.tasks import TASKS

    if not experiment.stages["pseudo_labelling"].rounds:
        return 0.0
    tasks = [TASKS[task] for task in experiment.wing.tasks]
    soft = experiment.wing.distillation.targets == "soft"
    bits = sum(task.classes - 1 for task in tasks if task.kind != "points")
    return bits / 8 + (2.0 * sum(task.classes for task in tasks) if soft else 0.0)
