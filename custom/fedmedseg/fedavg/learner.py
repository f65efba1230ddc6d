"""The baseline at a site: rounds on the shared network as the strategy has them, the site's model, and the one test."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.recall import recall, remember
from fedmedseg.core.training import run_steps
from fedmedseg.data.site import Site
from fedmedseg.fedavg.config import BESIDE, STAGE
from fedmedseg.fedavg.controls import ControlVariates
from fedmedseg.fedavg.objective import RoundObjective
from fedmedseg.fedavg.parts import Parts
from fedmedseg.fedavg.sharing import CONTROL, private_tensors, shared_tensors, split
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.local import announced_training, fine_tune
from fedmedseg.segmentation.site_learner import SiteLearner
from fedmedseg.segmentation.stages import PERSONAL
from fedmedseg.segmentation.testing import score_models
from fedmedseg.segmentation.together import candidate_is_due, consider, steps_of_round, validation_of

logger = logging.getLogger(__name__)

MEMORY = "site"
"""What a site remembers of each round: ``private`` (fedbn), ``personal`` (ditto) or ``controls`` (scaffold)."""
REMEMBERING = ("fedbn", "ditto", "scaffold")
"""Strategies that have a memory at the site."""
BEST = f"best_{PERSONAL}"

Tensors = Mapping[str, torch.Tensor]


class FederatedAveragingLearner(SiteLearner):
    """Runs ``training``, ``fine_tuning`` and ``evaluation`` of one site; ``parts`` are FLARE's."""

    def __init__(self, *, experiment: Experiment, site: Site, parts: Parts) -> None:
        super().__init__(experiment=experiment, site=site)
        self.parts = parts
        self.bench = Bench(experiment=experiment, site=site)

    def run(self, task: Task, shared: Tensors) -> Reply:
        """Do one task.

        Raises:
            Aborted: the federation asked to stop; the task continues when it is given again.
            FedMedSegError: with the reason the server may be told.
        """
        if task.stage == STAGE:
            return self._train(task, shared)
        chosen = self._settle(task, shared)
        if task.stage == "fine_tuning":
            return fine_tune(self.bench, task, {})
        if task.stage == "evaluation":
            reply = score_models(self.bench, task)
            return replace(reply, metrics={**reply.metrics, **chosen})
        raise ConfigurationError("stage", got=task.stage, expected=f"{STAGE}, fine_tuning or evaluation")

    def _train(self, task: Task, shared: Tensors) -> Reply:
        """One round: the network as it came, a share of ``segmentation.steps``, reply with the shared tensors."""
        bench, wing = self.bench, self.experiment.wing
        volumes = announced_training(bench)
        metrics = {"set_aside": float(len(volumes.quarantined))}
        memory = recall(task.state, MEMORY, task.round) if wing.strategy in REMEMBERING else None
        if task.round and memory is None and wing.strategy in REMEMBERING:
            logger.warning("no memory of an earlier round: this site begins as in round 0")
            metrics["memory_missing"] = 1.0
        network, common = split(shared)
        received = self._whole(network, memory)
        if wing.receives and task.round and candidate_is_due(self.experiment, task.round, task):
            metrics |= validation_of(PERSONAL, consider(bench, PERSONAL, received, task.round, task))
        bench.begin(received)
        anchor = None
        if wing.strategy in BESIDE:
            # a penalty would otherwise work out gradients of what it is the distance to, and keep them
            anchor = copy.deepcopy(bench.model).eval().requires_grad_(False)
        controls = None
        if wing.strategy == "scaffold":
            controls = ControlVariates(
                helper=self.parts.scaffold(),
                network=bench.model,
                own=memory["controls"] if memory else {},
                common=common,
            )
        proximal = self.parts.proximal(wing.mu) if wing.strategy == "fedprox" else None
        objective = self._objective(task, received=anchor, proximal=proximal, controls=controls)
        figures, steps = self._steps(objective, task, STAGE)
        metrics["loss"] = figures["loss"]
        trained = shared_tensors(bench.model, self.experiment)
        if wing.strategy == "fedbn":
            remember(task.state, MEMORY, task.round, {"private": private_tensors(bench.model, self.experiment)})
        if controls is not None:
            assert anchor is not None
            own, change = controls.renewed(anchor)
            remember(task.state, MEMORY, task.round, {"controls": own})
            trained |= {f"{CONTROL}{name}": common[name] + change[name] for name in common}
        if wing.strategy == "ditto":
            assert anchor is not None
            metrics["loss_personal"], more = self._train_own(task, memory, anchor)
            steps += more
        if not wing.receives and candidate_is_due(self.experiment, task.round + 1, task):
            model = {name: tensor.detach().cpu().clone() for name, tensor in bench.model.state_dict().items()}
            metrics |= validation_of(PERSONAL, consider(bench, PERSONAL, model, task.round + 1, task))
        return Reply(tensors=trained, metrics=metrics, examples=len(volumes), steps=steps)

    def _train_own(self, task: Task, memory: Mapping[str, Any] | None, anchor: nn.Module) -> tuple[float, int]:
        """Ditto's second half: as many steps of the site's own network, held near ``anchor``, the received one.

        It begins as the first network that the site received, and is in the bench afterwards.
        """
        self.bench.begin(memory["personal"] if memory else anchor.state_dict())
        proximal = self.parts.proximal(self.experiment.wing.ditto_lambda)
        objective = self._objective(task, received=anchor, proximal=proximal)
        figures, steps = self._steps(objective, task, "ditto")
        own = {name: tensor.detach().cpu().clone() for name, tensor in self.bench.model.state_dict().items()}
        remember(task.state, MEMORY, task.round, {"personal": own})
        return figures["loss"], steps

    def _objective(self, task: Task, **parts: Any) -> RoundObjective:
        """This round of training what the bench holds."""
        first, _ = steps_of_round(task.round, task.rounds, self.experiment.segmentation.steps)
        return RoundObjective(
            model=self.bench.model,
            training=self.bench.training,
            experiment=self.experiment,
            device=self.site.device,
            aborted=task.aborted,
            first_step=first,
            compute=self.bench.way("supervised", task),
            **parts,
        )

    def _steps(self, objective: RoundObjective, task: Task, name: str) -> tuple[dict[str, float], int]:
        """Means of a round's figures, and its number of steps."""
        _, steps = steps_of_round(task.round, task.rounds, self.experiment.segmentation.steps)
        work = "training" if name == STAGE else "training its own"
        # both of ditto's networks see the same batches
        return run_steps(objective, task=task, name=name, steps=steps, work=work, draws=STAGE), steps

    def _settle(self, task: Task, shared: Tensors) -> dict[str, float]:
        """Make the network that this site chose its model ``personal``, the last received one considered; figures.

        A site that trained nothing itself gets the federation's, unless parts of it are the sites' own (fedbn).
        """
        if PERSONAL not in self.bench.starts:
            return {}
        wing, rounds = self.experiment.wing, self.experiment.stages[STAGE].rounds
        key = f"{STAGE}|{rounds}|{task.base}"
        kept: dict[str, Any] | None = task.state.load(BEST)
        done = self.bench.finished(PERSONAL, task)
        if done is None or done["key"] != key or kept is None:
            memory = recall(task.state, MEMORY, rounds) if wing.strategy == "fedbn" else None
            if wing.receives and (memory is not None or wing.strategy != "fedbn"):
                kept = consider(self.bench, PERSONAL, self._whole(split(shared)[0], memory), rounds, task)
            if kept is None:
                # where evaluation asks for the model, it says why there is none
                return {}
            self.bench.finish(PERSONAL, {**self.bench.initial, **kept["tensors"]}, task, key=key, metrics={})
        return {f"best_round/{PERSONAL}": float(kept["rounds"]), **validation_of(PERSONAL, kept)}

    def _whole(self, network: Tensors, memory: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
        """All tensors of the network: what came, over what the site keeps of it, over the initial ones."""
        private = memory["private"] if memory is not None and "private" in memory else {}
        return {**self.bench.initial, **private, **network}
