"""The ``cardiac_ct:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from fedmedseg.cardiac_ct.gate import Limits
from fedmedseg.core.bounds import LARGEST, Digest, Positive
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import SwinUNETRSection
from fedmedseg.core.schema import Misfit, Strict, each_once, refuse_unread
from fedmedseg.core.training_settings import OptimizerSection
from fedmedseg.networks.factory import check_network

Taught = Literal["hps", "ms", "calc"]
"""The tasks that hospitals train CNNs for: hinge points and ostia, membranous septum, valve calcification."""
Transferred = Literal["coronaries", "heart", "calc", "hps", "ms"]
Backbone = Literal["student", "cnn"]
Stride = Positive | tuple[Positive, Positive, Positive]
Range = tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(ge=0.0)]]
Steps = Annotated[int, Field(ge=0, le=LARGEST)]

CT_INTENSITIES = ("heart_crop", "whole_scan")
HEAD_STAGES = ("distillation", "head_tuning")
"""Stages that train the transformer's heads."""
MASKS = {"calc": "calcification", "coronaries": "coronaries"}
"""Tasks whose labels are numbers of data.labels, and the names these must have."""


class PublishedAdamW(OptimizerSection):
    """torch's own AdamW, as published: betas 0.9 and 0.999, decay 0.01, no warm-up and no clipping to speak of."""

    learning_rate: float = Field(1.0e-2, gt=0.0)
    """The published rate is high for AdamW; 1e-3 where it is unstable."""
    weight_decay: float = Field(0.01, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    clip_norm: float = Field(1.0e9, gt=0.0)


class TeacherSection(Strict):
    """The CNN of each task: a plain convolutional U-Net that sees a whole heart at once."""

    filters: tuple[Positive, ...] = Field((32, 64, 128, 256, 320, 320), min_length=3)
    """Channels of each stage."""
    strides: tuple[Stride, ...] = (1, 2, 2, 2, 2, (2, 2, 1))
    """Of each stage, the first 1; a number for all axes or one for each."""
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    supervised: int = Field(2, ge=0, le=8)
    """Deeper levels with a loss of their own, of weights 1/2, 1/4, ..."""
    size: tuple[Positive, Positive, Positive] = (192, 192, 192)
    """Voxels that the CNN sees: the middle of the scan, cut or padded with 0, the mean intensity."""
    steps: Positive
    """Optimiser steps of a site in each task's stage, over all its rounds."""
    batch: Positive = 1
    """Volumes per step."""
    optimizer: PublishedAdamW = Field(default_factory=lambda: PublishedAdamW.model_validate({}))

    @model_validator(mode="after")
    def _fits(self) -> TeacherSection:
        if len(self.strides) != len(self.filters) or self.per_axis[0] != (1, 1, 1):
            raise Misfit(
                "strides",
                got=list(self.strides),
                expected=f"{len(self.filters)} numbers, one for each of filters, of which the first is 1",
            )
        if not 0 <= self.supervised <= len(self.filters) - 2:
            raise Misfit(
                "supervised",
                got=self.supervised,
                expected=f"at most {len(self.filters) - 2}, the levels between the finest and the bottleneck",
            )
        for axis, edge in enumerate(self.size):
            if edge % self.multiple[axis]:
                raise Misfit(
                    f"size[{axis}]",
                    got=edge,
                    expected=f"a multiple of {self.multiple[axis]}, the product of the strides along that axis",
                    remedy=f"use {math.ceil(edge / self.multiple[axis]) * self.multiple[axis]}",
                )
        if self.size == self.multiple:
            raise Misfit(
                "size",
                got=list(self.size),
                expected=f"more than {list(self.multiple)} on one axis: instance norm needs two values of a channel",
            )
        return self

    @property
    def per_axis(self) -> list[tuple[int, int, int]]:
        """Each stage's stride along every axis."""
        return [stride if isinstance(stride, tuple) else (stride, stride, stride) for stride in self.strides]

    @property
    def multiple(self) -> tuple[int, int, int]:
        """What each edge of ``size`` divides by."""
        x, y, z = (math.prod(stride[axis] for stride in self.per_axis) for axis in range(3))
        return x, y, z


class GateSection(Strict):
    """Which answers of the teachers are learned from (``cardiac_ct.gate``); ``any`` leaves a limit out."""

    keep: Literal["scan", "task"] = "scan"
    """``scan``: a scan counts where all its points were found and pass, as published; ``task``: each on its own."""
    hinge_points: Range | Literal["any"] = (8.0, 50.0)
    """mm between any two hinge points."""
    ostia: Range | Literal["any"] = (2.0, 50.0)
    """mm from an ostium to the nearest hinge point."""
    septum: Range | Literal["any"] = (1.0, 25.0)
    """mm between the ends of the membranous septum."""
    calcium: Range | Literal["any"] = (0.0, 1.0e4)
    """mm3 of calcification."""
    least_confidence: float = Field(0.0, ge=0.0, le=1.0)

    @field_validator("hinge_points", "ostia", "septum", "calcium")
    @classmethod
    def _ordered(cls, limits: tuple[float, float] | Literal["any"]) -> tuple[float, float] | Literal["any"]:
        if limits != "any" and limits[0] >= limits[1]:
            raise Misfit(got=list(limits), expected="(least, most) with least < most, or any")
        return limits

    @property
    def limits(self) -> Limits:
        """For ``cardiac_ct.gate``."""

        def asked(limit: tuple[float, float] | Literal["any"]) -> tuple[float, float] | None:
            return None if limit == "any" else limit

        return Limits(
            hinge_points=asked(self.hinge_points),
            ostia=asked(self.ostia),
            septum=asked(self.septum),
            calcium=asked(self.calcium),
            least_confidence=self.least_confidence,
        )


class DistillationSection(Strict):
    """What the student learns from; its steps, batches and optimiser are ``segmentation``'s."""

    pseudo_labels: bool = True
    """false: real labels alone, the transformer that is only federated."""
    real_labels: bool = True
    """Where a case has a real label of a task it takes the place of the teacher's answer."""
    targets: Literal["hard", "soft"] = "hard"
    """``hard``: the teachers' answers, as published; ``soft``: their probabilities at ``temperature``."""
    temperature: float = Field(2.0, gt=0.0)
    """Of ``targets: soft``."""
    weighting: Literal["none", "confidence"] = "none"
    """``confidence``: a pseudo-label's loss counts as much as its teacher was sure of it."""


class TransferSection(Strict):
    """A new last layer on frozen networks."""

    task: Transferred = "coronaries"
    """One of the study's ``tasks`` only where this layer is all that it trains: the layer then answers that task in
    place of the head or CNN of the file, in the test and in what is exported."""
    backbones: tuple[Backbone, ...] = ("student", "cnn")
    """``student``: the frozen transformer; ``cnn``: for comparison, the frozen CNN of the task ``cnn``."""
    cnn: Taught = "hps"
    steps: Positive = 100
    """Optimiser steps of a site over all rounds, for each backbone."""
    learning_rate: float = Field(1.0e-2, gt=0.0)
    patients: Positive | None = None
    """At most so many labelled patients of a site; unset: all."""

    @field_validator("backbones")
    @classmethod
    def _once(cls, backbones: tuple[Backbone, ...]) -> tuple[Backbone, ...]:
        return each_once(backbones, get_args(Backbone), what="backbone", remedy="as in [student, cnn]")


class Section(Strict):
    """Task CNNs at the hospitals that own a label, distilled into one transformer at all of them."""

    tasks: tuple[Taught, ...] = ("hps", "ms", "calc")
    radius: float = Field(4.0, gt=0.0)
    """Voxels of the sphere that stands for a point."""
    landmarks: Literal["spheres", "heatmaps"] = "spheres"
    """How points are learned: as labelled spheres, as published, or as Gaussian heat maps (an option of ours)."""
    sigma: float = Field(2.0, gt=0.0)
    """Voxels, of ``landmarks: heatmaps``."""
    conditioning: bool = False
    """The heart's structures (0 to 7, as they are) as a second input; zeros where a case has none."""
    share: Literal["federated", "nothing"] = "federated"
    """``nothing``: every site trains on its own, to compare with."""
    head_mean: Literal["trained", "all"] = "trained"
    """Over whose replies the mean of a head goes. ``trained``: those sites that trained it, so that nobody dilutes it;
    the server must read the replies for it. ``all``: every site, as published, where all sites learn all tasks; a head
    that some did not train then moves by their share less. Encrypted replies allow no other."""
    checkpointing: bool = True
    """The transformer computes activations again in the backward pass, which saves memory and costs a third of time."""
    start: Digest | None = None
    """SHA-256 of the tensors of an earlier run that stages start from (``core.start_file``)."""
    teacher: TeacherSection
    gate: GateSection = Field(default_factory=lambda: GateSection.model_validate({}))
    distillation: DistillationSection = Field(default_factory=lambda: DistillationSection.model_validate({}))
    schedule: Literal["constant", "cosine"] = "constant"
    """Of every stage's learning rate over its rounds, after the optimiser's warm-up; none was published."""
    head_steps: Steps = 0
    """Steps of the stage ``head_tuning`` over all its rounds."""
    transfer: TransferSection = Field(default_factory=lambda: TransferSection.model_validate({}))

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: tuple[Taught, ...]) -> tuple[Taught, ...]:
        chosen = each_once(tasks, get_args(Taught), what="task", remedy="as in [hps, ms, calc]")
        return tuple(task for task in get_args(Taught) if task in chosen)

    @property
    def starts(self) -> tuple[str, ...]:
        """The files of models a site ends with, under the names of reports."""
        return ("student", "cnn")

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        if not isinstance(experiment.network, SwinUNETRSection):
            raise ConfigurationError(
                "network.name",
                got=experiment.network.name,
                expected="swin_unetr, the transformer that every task is distilled into",
                remedy="write network: {name: swin_unetr}; the CNNs are cardiac_ct.teacher",
            )
        check_network(experiment)
        if experiment.network.pretrained is not None:
            raise ConfigurationError(
                "network.pretrained",
                got="an encoder",
                expected="none: this system starts from a whole run's file, cardiac_ct.start",
                remedy="remove it, or give the run's shared model with --start",
            )
        self._check_data(experiment)
        self._check_stages(experiment)
        self._check_unread(experiment)

    def _check_data(self, experiment: Experiment) -> None:
        data = experiment.data
        fixed = data.intensity in CT_INTENSITIES
        if data.modality != "ct" or data.spatial_dims != 3 or data.whole_depth or not fixed:
            raise ConfigurationError(
                "data",
                got=f"modality {data.modality}, spatial_dims {data.spatial_dims}, intensity {data.intensity}",
                expected=f"modality ct in 3D with one of the fixed intensities, {' or '.join(CT_INTENSITIES)}",
                remedy="set data.intensity to heart_crop, which training and inference then share",
            )
        if data.alternatives:
            raise ConfigurationError(
                "data.alternatives",
                got=f"{len(data.alternatives)} data sets",
                expected="none: which tasks a site's cases annotate stands in its data list",
            )
        if experiment.segmentation.augment:
            raise ConfigurationError(
                "segmentation.augment",
                got=True,
                expected="false: mirrored hearts have their points on the wrong side, and none was published",
                remedy="set segmentation.augment to false",
            )
        rounds = {stage: section.rounds for stage, section in experiment.stages.items()}
        learned = any(rounds[stage] for stage in ("teacher_calc", "distillation", "head_tuning"))
        wanted = {"calcification"} if "calc" in self.tasks and learned else set()
        if rounds["transfer"] and self.transfer.task in MASKS:
            wanted.add(MASKS[self.transfer.task])
        for name in sorted(wanted - set(data.labels.values())):
            raise ConfigurationError(
                "data.labels",
                got=dict(data.labels),
                expected=f"a number for {name}, which a stage of this study trains on",
                remedy=f"add {name} to data.labels",
            )

    def _check_stages(self, experiment: Experiment) -> None:
        rounds = {stage: section.rounds for stage, section in experiment.stages.items()}
        for stage in ("pseudo_labelling", "evaluation"):
            if rounds[stage] > 1:
                raise ConfigurationError(
                    f"stages.{stage}.rounds", got=rounds[stage], expected="0 or 1: it is done once"
                )
        for task in get_args(Taught):
            self._check_teacher(task, rounds[f"teacher_{task}"])
        started = self.start is not None
        teachers = started or any(rounds[f"teacher_{task}"] for task in self.tasks)
        if rounds["pseudo_labelling"] and not teachers:
            raise _needs("pseudo_labelling", rounds, "a teacher's stage before it, or cardiac_ct.start")
        taught = self.distillation.pseudo_labels
        if bool(rounds["distillation"] and taught) != bool(rounds["pseudo_labelling"]):
            raise ConfigurationError(
                "stages.pseudo_labelling.rounds",
                got=rounds["pseudo_labelling"],
                expected="1 where the stage distillation learns from pseudo-labels, else 0",
                remedy="set it so, or set cardiac_ct.distillation.pseudo_labels to false",
            )
        if not taught and not self.distillation.real_labels and rounds["distillation"]:
            raise ConfigurationError(
                "cardiac_ct.distillation",
                got="neither pseudo_labels nor real_labels",
                expected="at least one, or there is nothing to learn from",
            )
        student = started or rounds["distillation"] > 0
        if rounds["head_tuning"] and not student:
            raise _needs("head_tuning", rounds, "the stage distillation before it, or cardiac_ct.start")
        if bool(rounds["head_tuning"]) != bool(self.head_steps):
            raise ConfigurationError(
                "cardiac_ct.head_steps",
                got=f"{self.head_steps}, with stages.head_tuning.rounds {rounds['head_tuning']}",
                expected="both 0, or both above",
            )
        if rounds["transfer"]:
            self._check_transfer(rounds, student)
        self._check_lengths(experiment, rounds)
        self._check_encryption(experiment, rounds)
        if self.share == "nothing":
            self._check_alone(rounds)

    def _check_teacher(self, task: str, rounds: int) -> None:
        if rounds and task not in self.tasks:
            raise ConfigurationError(
                f"stages.teacher_{task}.rounds",
                got=rounds,
                expected=f"0: {task} is not among cardiac_ct.tasks",
                remedy=f"set it to 0, or add {task} to cardiac_ct.tasks",
            )

    def _check_transfer(self, rounds: dict[str, int], student: bool) -> None:
        if "student" in self.transfer.backbones and not student:
            raise _needs(
                "transfer", rounds, "the stage distillation before it, or cardiac_ct.start, or backbones [cnn]"
            )
        others = sum(number for stage, number in rounds.items() if stage not in ("transfer", "evaluation"))
        if self.transfer.task in self.tasks and others:
            raise ConfigurationError(
                "cardiac_ct.transfer.task",
                got=f"{self.transfer.task}, which is among cardiac_ct.tasks",
                expected="a task that this study trains no head for: the new layer would answer in that head's place",
                remedy="name another task, or train the new layer alone from the finished run (--start)",
            )
        trained = self.start is not None or rounds[f"teacher_{self.transfer.cnn}"] > 0
        if "cnn" in self.transfer.backbones and not (trained and self.transfer.cnn in self.tasks):
            raise _needs("transfer", rounds, f"the stage teacher_{self.transfer.cnn} before it, or backbones [student]")

    def _check_lengths(self, experiment: Experiment, rounds: dict[str, int]) -> None:
        lengths = {f"teacher_{task}": self.teacher.steps for task in self.tasks}
        lengths |= {"distillation": experiment.segmentation.steps, "head_tuning": self.head_steps}
        lengths |= {"transfer": self.transfer.steps}
        for stage, steps in lengths.items():
            if rounds[stage] > max(1, steps):
                raise ConfigurationError(
                    f"stages.{stage}.rounds",
                    got=rounds[stage],
                    expected=f"at most {steps}, the steps that rounds share",
                )

    def _check_encryption(self, experiment: Experiment, rounds: dict[str, int]) -> None:
        """Refuse encrypted replies where the server's rule has to read them, before a CNN is trained for nothing."""
        encryption = experiment.federation.encryption
        if encryption != "none" and self.head_mean == "trained" and any(rounds[stage] for stage in HEAD_STAGES):
            raise ConfigurationError(
                "federation.encryption",
                got=f"{encryption} with cardiac_ct.head_mean trained: which heads a site trained shows in its reply, "
                "which the server could not read",
                expected="cardiac_ct.head_mean all, a weighted mean",
                remedy="set it to all, the rounds of distillation and head_tuning to 0, or federation.encryption to "
                "none",
            )

    def _check_alone(self, rounds: dict[str, int]) -> None:
        if self.start is not None:
            raise ConfigurationError(
                "cardiac_ct.start", got="a file", expected="none with share nothing: sites start from the study's seed"
            )
        for stage, number in rounds.items():
            if number > 1:
                raise ConfigurationError(
                    f"stages.{stage}.rounds",
                    got=number,
                    expected="0 or 1 with cardiac_ct.share nothing: a second round would repeat the first",
                    remedy="set it to 1 and give its steps the length you want",
                )

    def _check_unread(self, experiment: Experiment) -> None:
        rounds = {stage: section.rounds for stage, section in experiment.stages.items()}
        distil, trained = self.distillation, rounds["distillation"] > 0
        refuse_unread(
            distil,
            "cardiac_ct.distillation",
            {
                "temperature": (distil.targets == "soft", "targets soft"),
                "targets": (trained and distil.pseudo_labels, "pseudo_labels"),
                "weighting": (trained and distil.pseudo_labels, "pseudo_labels"),
            },
        )
        refuse_unread(
            self,
            "cardiac_ct",
            {
                "sigma": (self.landmarks == "heatmaps", "landmarks heatmaps"),
                "head_mean": (
                    self.share == "federated" and any(rounds[stage] for stage in HEAD_STAGES),
                    "share federated and rounds of distillation or head_tuning",
                ),
                "gate": (rounds["pseudo_labelling"] > 0, "stages.pseudo_labelling.rounds 1"),
                "transfer": (rounds["transfer"] > 0, "stages.transfer.rounds above 0"),
            },
        )
        elsewhere = (False, "a system that fine-tunes networks at each site")
        fields = ("fine_tuning", "encoder_rate_factor", "encoder_rate_share", "validate_every", "augmentation")
        refuse_unread(experiment.segmentation, "segmentation", dict.fromkeys(fields, elsewhere))
        if self.landmarks == "heatmaps" and distil.targets == "soft":
            raise ConfigurationError(
                "cardiac_ct.distillation.targets",
                got="soft, with landmarks heatmaps",
                expected="hard: heat maps are no probabilities of classes",
            )


def _needs(stage: str, rounds: dict[str, int], what: str) -> ConfigurationError:
    return ConfigurationError(f"stages.{stage}.rounds", got=rounds[stage], expected=f"0 without {what}")
