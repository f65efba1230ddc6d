"""SegViz at a site: rounds on the shared trunk with the site's own head and norms, its best model, and the one test."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.recall import recall, remember
from fedmedseg.core.training import run_steps
from fedmedseg.segmentation.site_learner import SiteLearner
from fedmedseg.segmentation.testing import score_models
from fedmedseg.segmentation.together import candidate_is_due, consider, steps_of_round, validation_of
from fedmedseg.segviz.bench import PartialLabelBench
from fedmedseg.segviz.distillation import weight_of
from fedmedseg.segviz.network import HEAD, private_tensors, shared_tensors
from fedmedseg.segviz.objective import PartialLabelObjective
from fedmedseg.segviz.publication import laid_out

logger = logging.getLogger(__name__)
PERSONAL, SCRATCH = "personal", "scratch"


class PartialLabelLearner(SiteLearner):
    """Runs ``training``, ``head_tuning``, ``evaluation`` and ``publication`` of one site, whatever it marks.

    What the site remembers of each round is ``personal`` (private tensors and optimiser) and, with a local baseline,
    ``scratch`` (all tensors and optimiser); ``best_<model>`` is what it has chosen so far.
    """

    @cached_property
    def bench(self) -> PartialLabelBench:
        """Network and volumes, for the organs that this site's training cases mark."""
        return PartialLabelBench(study=self.experiment, site=self.site)

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """Do one task.

        Raises:
            Aborted: the federation asked to stop; the task continues when it is given again.
            FedMedSegError: with the reason the server may be told.
        """
        if task.stage == "training":
            return self._train(task, shared)
        if task.stage == "head_tuning":
            return self._tune_head(task, shared)
        if task.stage == "evaluation":
            return self._evaluate(task, shared)
        if task.stage == "publication":
            return self._publish(task, shared)
        raise ConfigurationError("stage", got=task.stage, expected="training, head_tuning, evaluation or publication")

    def _train(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """One round: the trunk as it came, head, norms and optimiser as the site's last round left them."""
        bench, wing = self.bench, self.experiment.wing
        steps = steps_of_round(task.round, task.rounds, self.experiment.segmentation.steps)[1]
        memory = recall(task.state, PERSONAL, task.round)
        metrics = {"set_aside": float(len(bench.training.quarantined))}
        if task.round and memory is None:
            logger.warning("no memory of an earlier round: head and norms start from the study's seed")
            metrics["memory_missing"] = 1.0
        received = {**bench.initial, **(memory["private"] if memory else {}), **shared}
        if wing.candidates == "received" and task.round and candidate_is_due(self.experiment, task.round, task):
            consider(bench, PERSONAL, received, task.round, task)
        bench.begin(received)
        logger.info("training on %d volumes that mark %s", len(bench.training), ", ".join(self._names))
        figures, optimizer = self._steps(task, PERSONAL, memory, teacher=self._teacher())
        trained = shared_tensors(bench.model, self.experiment)
        private = private_tensors(bench.model, self.experiment)
        remember(task.state, PERSONAL, task.round, {"private": private, "optimizer": optimizer})
        if wing.candidates == "trained" and candidate_is_due(self.experiment, task.round + 1, task):
            metrics |= validation_of(PERSONAL, consider(bench, PERSONAL, {**private, **trained}, task.round + 1, task))
        metrics |= figures
        if wing.local_baseline:
            metrics |= self._train_alone(task)
        return Reply(
            tensors=trained, metrics=metrics, examples=len(bench.training), steps=steps * (1 + wing.local_baseline)
        )

    def _train_alone(self, task: Task) -> dict[str, float]:
        """The same steps on the same batches for the network that never meets another site's."""
        bench = self.bench
        memory = recall(task.state, SCRATCH, task.round)
        bench.begin(memory["tensors"] if memory else {})
        figures, optimizer = self._steps(task, SCRATCH, memory)
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in bench.model.state_dict().items()}
        remember(task.state, SCRATCH, task.round, {"tensors": tensors, "optimizer": optimizer})
        metrics = {"loss_scratch": figures["loss"]}
        if candidate_is_due(self.experiment, task.round + 1, task):
            metrics |= validation_of(SCRATCH, consider(bench, SCRATCH, tensors, task.round + 1, task))
        return metrics

    def _steps(
        self, task: Task, model: str, memory: Mapping[str, Any] | None, *, teacher: nn.Module | None = None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Train the bench's network for this round; figures, and the optimiser's state after it."""
        section, wing = self.experiment.segmentation, self.experiment.wing
        first, steps = steps_of_round(task.round, task.rounds, section.steps)
        weight = 0.0
        if teacher is not None:
            weight = weight_of(wing.distillation.first, wing.distillation.last, task.round, task.rounds)
        objective = PartialLabelObjective(
            model=self.bench.model,
            training=self.bench.training,
            experiment=self.bench.experiment,
            device=self.site.device,
            total=section.steps,
            first_step=first,
            optimizer=memory["optimizer"] if memory else None,
            teacher=teacher,
            distillation=weight,
            compute=self.bench.way("supervised", task),
        )
        figures = run_steps(
            objective,
            task=task,
            name=f"training_{model}",
            steps=steps,
            work="training" if model == PERSONAL else "training alone",
            # with and without the others a site sees the same batches
            draws="training",
        )
        return figures, objective.optimizer_state()

    def _teacher(self) -> nn.Module | None:
        """The network as it stands at the round's start, where the study distils from it."""
        if self.experiment.wing.distillation is None:
            return None
        return copy.deepcopy(self.bench.model)

    def _tune_head(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """Train the head alone from the best model; the site keeps it where its validation is no worse for it."""
        bench, steps = self.bench, self.experiment.wing.head_steps
        kept = self._best(PERSONAL, task, shared)
        bench.begin(kept["tensors"])
        objective = PartialLabelObjective(
            model=bench.model,
            training=bench.training,
            experiment=bench.experiment,
            device=self.site.device,
            total=steps,
            within=HEAD,
            compute=bench.way("supervised", task),
        )
        figures = run_steps(objective, task=task, name="head_tuning", steps=steps, work="tuning the head")
        tuned = {name: tensor.detach().cpu().clone() for name, tensor in bench.model.state_dict().items()}
        # one more than the rounds of training: what best_round then says
        kept = consider(bench, PERSONAL, tuned, self.experiment.stages["training"].rounds + 1, task)
        metrics = {**figures, **validation_of(PERSONAL, kept), "set_aside": float(len(bench.training.quarantined))}
        return Reply(metrics=metrics, examples=len(bench.training), steps=steps)

    def _evaluate(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """Make the best of each model this site's, then score them on the organs that they predict."""
        bench = self.bench
        chosen: dict[str, float] = {}
        for model in bench.starts:
            kept = self._best(model, task, shared)
            bench.finish(model, kept["tensors"], task, key=task.base, metrics={})
            chosen |= validation_of(model, kept) | {f"best_round/{model}": float(kept["rounds"])}
        reply = score_models(bench, task)
        return replace(reply, metrics={**reply.metrics, **chosen})

    def _publish(self, task: Task, places: Mapping[str, torch.Tensor]) -> Reply:
        """Hand out head, norms and statistics as the last round of training left them: they suit the last trunk.

        Raises:
            FedMedSegError: the site's own file does not agree (reason DENIED), or it took no part in training.
        """
        if not self.site.publish:
            raise FedMedSegError(
                "publication",
                got="publish: false in the site file",
                expected="publish: true, the word of this site's people",
                reason=Reason.DENIED,
            )
        memory = recall(task.state, PERSONAL, self.experiment.stages["training"].rounds)
        if memory is None:
            raise _untrained(PERSONAL)
        published = laid_out(memory["private"], self.bench.organs, places)
        return Reply(tensors=published, examples=len(self.bench.training))

    def _best(self, model: str, task: Task, shared: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What the site has chosen, after the last received model was considered where such are.

        Raises:
            FedMedSegError: this site took no part in training (reason MISSING_TENSORS).
        """
        rounds = self.experiment.stages["training"].rounds
        kept: dict[str, Any] | None = task.state.load(f"best_{model}")
        received = model == PERSONAL and self.experiment.wing.candidates == "received"
        if received and (kept is None or kept["rounds"] <= rounds):
            memory = recall(task.state, PERSONAL, rounds)
            if memory is not None:
                tensors = {**self.bench.initial, **memory["private"], **shared}
                kept = consider(self.bench, PERSONAL, tensors, rounds, task)
        if kept is None:
            raise _untrained(model)
        return kept

    @property
    def _names(self) -> list[str]:
        return list(self.bench.experiment.data.labels.values())


def _untrained(model: str) -> FedMedSegError:
    return FedMedSegError(
        f"model {model}",
        got="none from this run",
        expected="a model of this site's training",
        remedy="see why the training stage failed at this site",
        reason=Reason.MISSING_TENSORS,
    )
