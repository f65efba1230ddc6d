"""FCLOpt at a site: one round of learning without negatives, from the server's tensors to the site's reply."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.fedema import mean_change
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.data.slices import require_parts
from fedmedseg.fclopt.config import STAGE
from fedmedseg.fclopt.memory import RoundStart, round_start
from fedmedseg.fclopt.network import parameters_of, to_wire
from fedmedseg.fclopt.objective import BootstrapObjective
from fedmedseg.segmentation.site_learner import PretrainingLearner
from fedmedseg.segmentation.slice_pretraining import watched
from fedmedseg.segmentation.stages import PERSONAL


class BootstrapLearner(PretrainingLearner):
    """Pretrains a site's encoder; data and networks are built once per process, at the first task."""

    @cached_property
    def objective(self) -> BootstrapObjective:
        """Online and target network over this site's volumes.

        Raises:
            DataError: a volume too shallow for ``fclopt.partition``.
        """
        section = self.experiment.wing
        require_parts(self.volumes, section.parts, section.partition, system="fclopt")
        return self._build()

    def _build(self) -> BootstrapObjective:
        return BootstrapObjective(
            experiment=self.experiment, volumes=self.volumes, device=torch.device(self.site.device)
        )

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """One round: the target network worked out or taken over, ``local_steps`` steps, reply.

        What the site must remember is saved as ``personal`` before the reply is handed over: ``round``, ``tensors``
        (the online network as it leaves it), ``sent`` and ``target`` (both networks as the round started with them),
        ``correction``, its own target network where it is kept, and what a repeated task needs.

        Raises:
            Aborted: the federation asked to stop; the task can be given again and continues.
            DataError: this site has no usable volume.
            FedMedSegError: the loss stopped being finite.
            ConfigurationError: a stage this learner does not do.
        """
        if task.stage != STAGE:
            raise ConfigurationError("stage", got=repr(task.stage), expected=repr(STAGE))
        section, objective = self.experiment.wing, self.objective
        crops = section.volumes_per_step * section.parts
        objective.use(self.way(task, crops=crops, trial=lambda: self._build().trial()))
        objective.begin(round=task.round, rounds=task.rounds)
        # its own round's too: the same task may come again
        memory = self.remembered(task, until=task.round)
        start = round_start(
            section, shared, memory, number=task.round, followed=sorted(parameters_of(objective.target))
        )
        steps = section.local_steps
        means = run_steps(
            objective,
            task=task,
            name=STAGE,
            steps=steps,
            prepare=lambda: objective.start(start.online, start.target),
        )
        tensors, target = objective.trained(), objective.followed()
        task.state.save(PERSONAL, self._memory(task, start, tensors, target))
        figures = {**start.figures, "rate": objective.rate, **watched(means["feature_std"], section.collapse)}
        return Reply(
            tensors={**tensors, **to_wire(target)},
            known=to_wire(start.target),
            held=start.digest,
            metrics={**means, **figures, "set_aside": float(len(self.volumes.quarantined))},
            examples=len(self.volumes),
            steps=steps,
        )

    def _memory(
        self, task: Task, start: RoundStart, tensors: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
    ) -> dict[str, object]:
        section = self.experiment.wing
        kept: dict[str, object] = {
            "round": task.round,
            "tensors": tensors,
            "sent_sha256": content_sha256(start.sent),
            "target": start.target,
            "correction": start.correction,
            "figures": dict(start.figures),
            "factor": start.factor,
            "online": None,
        }
        if section.predicts:
            kept["sent"] = start.sent
        if section.mode == "keep_local":
            kept["own_target"] = target
        if section.client_mix == "fedema":
            parameters = parameters_of(self.objective.online)
            before = {name: start.online[name] for name in parameters}
            kept |= {"online": start.online, "change": mean_change(before, tensors)}
        return kept
