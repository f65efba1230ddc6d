"""Federated cardiac CT at a site: from the CNNs of the tasks it annotates to the one test of everything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from fedmedseg.cardiac_ct.batches import Patches, WholeHearts
from fedmedseg.cardiac_ct.labelling import label_scans
from fedmedseg.cardiac_ct.lessons import Lessons, without_heart
from fedmedseg.cardiac_ct.models import TRANSFORMER, Networks
from fedmedseg.cardiac_ct.network import parameters_of
from fedmedseg.cardiac_ct.objective import TaskObjective, student_terms, teacher_terms, transfer_terms
from fedmedseg.cardiac_ct.plan import HEADS, STUDENT, TAUGHT, TEACHER, TRANSFER, initial_shared
from fedmedseg.cardiac_ct.pseudo_labels import load_index
from fedmedseg.cardiac_ct.testing import score_models
from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.data.volumes import Volumes, training_volumes
from fedmedseg.segmentation.site_learner import SiteLearner
from fedmedseg.segmentation.site_page import write_untested
from fedmedseg.segmentation.together import steps_of_round

logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]
OWN = "own"
"""What a site remembers beside pseudo-labels and an interrupted test: models of its own."""
RUNNING = (*(f"teacher_{task}" for task in TAUGHT), "distillation", "head_tuning", "transfer_student", "transfer_cnn")


class KnowledgeDistillationLearner(SiteLearner):
    """Runs every stage of one site, whatever its cases annotate.

    A site takes part in a task's stage where a training case annotates it, in pseudo-labelling and distillation with
    all its scans, in head tuning and transfer with what it annotates, and in the test with its test cases; elsewhere it
    declines. Pseudo-labels lie on its disk, a file per scan.
    """

    def run(self, task: Task, shared: Tensors) -> Reply:
        """Do one task.

        Raises:
            Aborted: the federation asked to stop; the task continues when it is given again.
            DataError: the site has nothing to take part with (reason NO_CASES).
            FedMedSegError: with the reason the server may be told.
        """
        stages = {f"teacher_{name}": self._teach for name in TAUGHT}
        stages |= {
            "pseudo_labelling": self._label,
            "distillation": self._distil,
            "head_tuning": self._tune_heads,
            "transfer": self._transfer,
            "evaluation": self._evaluate,
        }
        if task.stage not in stages:
            raise ConfigurationError("stage", got=task.stage, expected=f"one of {', '.join(stages)}")
        for name in RUNNING:
            if not name.startswith(task.stage):
                # a stage that is over leaves no copies of its network and moments
                task.state.remove(f"running_{name}")
        return stages[task.stage](task, shared)

    @cached_property
    def training(self) -> Volumes:
        """The cases that somebody annotated."""
        return training_volumes(self.site, self.experiment)

    @cached_property
    def scans(self) -> Volumes:
        """All scans, annotated or not, but those of validation and test."""
        return Volumes(site=self.site, experiment=self.experiment, section="scans")

    @property
    def alone(self) -> bool:
        """Whether nothing is shared in this study."""
        return bool(self.experiment.wing.share == "nothing")

    def _teach(self, task: Task, shared: Tensors) -> Reply:
        """A share of the steps on one task's CNN."""
        name, section = task.stage.removeprefix("teacher_"), self.experiment.wing.teacher
        lessons = Lessons(volumes=self.training, experiment=self.experiment, tasks=(name,))
        logger.info("%s: %d of %d training cases annotate it", name, len(lessons), len(self.training))
        networks = self._networks(task, shared)
        teacher = networks.teacher(name)
        terms = teacher_terms(teacher, name, choice=networks.way("supervised", teacher), device=self.site.device)
        draw = WholeHearts(lessons=lessons, task=name, size=section.size, batch=section.batch).draw
        figures, steps = self._steps(
            task,
            TaskObjective(
                trained=dict(teacher.named_parameters()),
                terms=terms,
                draw=draw,
                optimizer=section.optimizer,
                schedule=self.experiment.wing.schedule,
                total=section.steps,
                first_step=_first(task, section.steps),
            ),
            total=section.steps,
            work=f"training the CNN of {name}",
        )
        trained = parameters_of(teacher, f"{TEACHER}{name}.")
        return self._reply(task, trained, figures | self._cases(self.training), examples=len(lessons), steps=steps)

    def _label(self, task: Task, shared: Tensors) -> Reply:
        """Let the CNNs label every scan where nobody has, and keep on the disk what passes the gate."""
        figures = label_scans(task, networks=self._networks(task, shared), scans=self.scans)
        return Reply(metrics=figures | self._cases(self.scans), examples=len(self.scans))

    def _distil(self, task: Task, shared: Tensors) -> Reply:
        """A share of the steps on the student, from the CNNs' answers and the real labels."""
        section, distillation = self.experiment.segmentation, self.experiment.wing.distillation
        taught = task.state if distillation.pseudo_labels else None
        if taught is not None and load_index(taught) is None:
            logger.warning("no pseudo-labels at this site: it learns from its real labels alone")
        lessons = Lessons(
            volumes=self.scans,
            experiment=self.experiment,
            tasks=self.experiment.wing.tasks,
            real=distillation.real_labels,
            taught=taught,
        )
        logger.info("distillation from %d of %d scans", len(lessons), len(self.scans))
        networks = self._networks(task, shared)
        student = networks.student()
        terms = student_terms(
            student,
            temperature=distillation.temperature,
            choice=networks.way("supervised", student),
            device=self.site.device,
        )
        figures, steps = self._steps(
            task,
            TaskObjective(
                trained=dict(student.named_parameters()),
                terms=terms,
                draw=self._patches(lessons, weighting=distillation.weighting).draw,
                optimizer=section.optimizer,
                schedule=self.experiment.wing.schedule,
                total=section.steps,
                first_step=_first(task, section.steps),
            ),
            total=section.steps,
            work="distilling",
        )
        figures |= lessons.counts() | self._cases(self.scans)
        return self._reply(task, parameters_of(student, STUDENT), figures, examples=len(lessons), steps=steps)

    def _tune_heads(self, task: Task, shared: Tensors) -> Reply:
        """A share of the steps on the heads alone, from real labels."""
        wing = self.experiment.wing
        lessons = Lessons(volumes=self.training, experiment=self.experiment, tasks=wing.tasks)
        networks = self._networks(task, shared)
        student = networks.student()
        terms = student_terms(
            student,
            temperature=1.0,
            choice=networks.way("supervised", student),
            device=self.site.device,
            frozen=True,
        )
        figures, steps = self._steps(
            task,
            TaskObjective(
                trained=dict(student.heads.named_parameters()),
                terms=terms,
                draw=self._patches(lessons).draw,
                optimizer=self.experiment.segmentation.optimizer,
                schedule=wing.schedule,
                total=wing.head_steps,
                first_step=_first(task, wing.head_steps),
            ),
            total=wing.head_steps,
            work="tuning the heads",
        )
        figures |= lessons.counts() | self._cases(self.training)
        return self._reply(task, parameters_of(student.heads, HEADS), figures, examples=len(lessons), steps=steps)

    def _transfer(self, task: Task, shared: Tensors) -> Reply:
        """A share of the steps on a new last layer for each backbone, none of which changes."""
        transfer, networks = self.experiment.wing.transfer, self._networks(task, shared)
        lessons = Lessons(
            volumes=self.training,
            experiment=self.experiment,
            tasks=(transfer.task,),
            patients=transfer.patients,
        )
        optimizer = self.experiment.segmentation.optimizer.model_copy(update={"learning_rate": transfer.learning_rate})
        trained: dict[str, torch.Tensor] = {}
        figures: dict[str, float] = {}
        for name in transfer.backbones:
            backbone = networks.student() if name == TRANSFORMER else networks.teacher(transfer.cnn)
            last = networks.last_layer(name)
            draw = (
                self._patches(lessons).draw
                if name == TRANSFORMER
                else WholeHearts(
                    lessons=lessons,
                    task=transfer.task,
                    size=self.experiment.wing.teacher.size,
                    batch=self.experiment.wing.teacher.batch,
                ).draw
            )
            found, _ = self._steps(
                task,
                TaskObjective(
                    trained=dict(last.named_parameters()),
                    terms=transfer_terms(
                        backbone,
                        last,
                        transfer.task,
                        choice=networks.way("supervised", backbone),
                        device=self.site.device,
                    ),
                    draw=draw,
                    optimizer=optimizer,
                    schedule=self.experiment.wing.schedule,
                    total=transfer.steps,
                    first_step=_first(task, transfer.steps),
                ),
                total=transfer.steps,
                name=f"transfer_{name}",
                work=f"transfer to {transfer.task} on the {name}",
            )
            figures[f"loss/{name}"] = found["loss"]
            trained |= parameters_of(last, f"{TRANSFER}{name}.")
        steps = len(transfer.backbones) * steps_of_round(task.round, task.rounds, transfer.steps)[1]
        return self._reply(task, trained, figures | lessons.counts(), examples=len(lessons), steps=steps)

    def _evaluate(self, task: Task, shared: Tensors) -> Reply:
        """Score every model on whatever the test cases annotate."""
        try:
            test = Volumes(site=self.site, experiment=self.experiment, section="test")
            reply = score_models(task, networks=self._networks(task, shared), test=test, folder=self.folder)
        except DataError as error:
            write_untested(self.folder, error, site=self.site, experiment=self.experiment, read_as=self.experiment)
            raise
        return replace(reply, metrics={**reply.metrics, **self._cases(test)})

    @property
    def folder(self) -> Path:
        """This study's models and scores at this site."""
        return self.site.models / self.experiment.study

    def _networks(self, task: Task, shared: Tensors) -> Networks:
        """The study's networks with the tensors that came; where nothing is shared, with this site's own.

        A stage that trains alone begins at the study's initial weights.
        """
        tensors = dict(shared)
        if self.alone:
            own = task.state.load(OWN)
            tensors = dict(own["tensors"]) if own is not None else {}
            training = _trained_in(task.stage)
            if training:
                tensors |= {name: t for name, t in initial_shared(self.experiment).items() if name.startswith(training)}
        return Networks(experiment=self.experiment, site=self.site, tensors=tensors, aborted=task.aborted)

    def _patches(self, lessons: Lessons, *, weighting: str = "none") -> Patches:
        section = self.experiment.segmentation
        x, y, z = self.experiment.data.crop
        return Patches(
            lessons=lessons,
            crop=(x, y, z),
            batch=section.batch,
            foreground_share=section.foreground_share,
            weighting=weighting,
        )

    def _steps(
        self, task: Task, objective: TaskObjective, *, total: int, work: str, name: str | None = None
    ) -> tuple[dict[str, float], int]:
        """This round's share of ``total`` steps: figures, and how many they were."""
        steps = steps_of_round(task.round, task.rounds, total)[1]
        return run_steps(objective, task=task, name=name or task.stage, steps=steps, work=work), steps

    def _reply(
        self, task: Task, trained: dict[str, torch.Tensor], figures: Mapping[str, float], *, examples: int, steps: int
    ) -> Reply:
        """What a training stage hands back; where nothing is shared its tensors stay on the site's disk."""
        if not self.alone:
            return Reply(tensors=trained, metrics=figures, examples=examples, steps=steps)
        own = task.state.load(OWN)
        task.state.save(OWN, {"tensors": {**(own["tensors"] if own is not None else {}), **trained}})
        return Reply(metrics=figures, examples=examples, steps=steps)

    def _cases(self, volumes: Volumes) -> dict[str, float]:
        return {"set_aside": float(len(volumes.quarantined)), **without_heart(volumes, self.experiment)}


def _first(task: Task, total: int) -> int:
    """The first step of this round, counted over all rounds of the stage."""
    return steps_of_round(task.round, task.rounds, total)[0]


def _trained_in(stage: str) -> tuple[str, ...]:
    """Beginnings of the names of the tensors that a stage trains from the study's initial weights."""
    if stage.startswith("teacher_"):
        return (f"{TEACHER}{stage.removeprefix('teacher_')}.",)
    return {"distillation": (STUDENT,), "transfer": (TRANSFER,)}.get(stage, ())
