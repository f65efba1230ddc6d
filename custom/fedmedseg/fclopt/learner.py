"""FCLOpt at a site: one round of learning without negatives, from the server's tensors to the site's reply."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.core.fedema import mean_change
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.data.partitions import partition_of_slices
from fedmedseg.fclopt.config import STAGE
from fedmedseg.fclopt.memory import RoundStart, round_start
from fedmedseg.fclopt.network import parameters_of, to_wire
from fedmedseg.fclopt.objective import BootstrapObjective
from fedmedseg.networks.timing import choose
from fedmedseg.segmentation.stages import PERSONAL

if TYPE_CHECKING:
    from fedmedseg.data.site import Site
    from fedmedseg.data.volumes import Volumes

logger = logging.getLogger(__name__)


class BootstrapLearner:
    """Pretrains a site's encoder; data and networks are built once per process, at the first task."""

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        self.experiment = experiment
        self.site = site
        self._way: ComputeChoice | None = None

    @property
    def state_root(self) -> Path:
        """Folder under which this site's state is kept."""
        return self.site.state_root

    @property
    def needs_approval(self) -> bool:
        """Whether this site's people decide on each job."""
        return self.site.approval == "each_job"

    @cached_property
    def volumes(self) -> Volumes:
        """The site's images, labelled or not; labels are not read."""
        from fedmedseg.data.volumes import Volumes

        return Volumes(site=self.site, experiment=self.experiment, section="unlabeled")

    @cached_property
    def objective(self) -> BootstrapObjective:
        """Online and target network over this site's volumes.

        Raises:
            DataError: a volume too shallow for ``fclopt.partition``.
        """
        section = self.experiment.wing
        for index in range(len(self.volumes)):
            try:
                partition_of_slices(self.volumes.slice_tissue(index).shape[0], section.parts, section.partition)
            except ValueError:
                raise DataError(
                    "fclopt.partition",
                    got=f"{section.partition} in {section.parts} parts, and a volume of too few slices for it",
                    expected="a rule that every volume of this site has slices enough for",
                    remedy="set fclopt.partition to even, or fclopt.parts lower",
                ) from None
        return self._build()

    def _build(self) -> BootstrapObjective:
        return BootstrapObjective(
            experiment=self.experiment, volumes=self.volumes, device=torch.device(self.site.device)
        )

    def _compute(self, task: Task) -> ComputeChoice:
        """How both networks are computed here; asked once per process, since a full disk would not remember."""
        if self._way is None:
            section, data = self.experiment.wing, self.experiment.data
            self._way = choose(
                self.experiment,
                work="pretext",
                shape=(section.volumes_per_step * section.parts, 1, *data.crop),
                trial=lambda: self._build().trial(),
                cache=self.site.cache,
                device=self.site.device,
                aborted=task.aborted,
            )
        return self._way

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
        objective.use(self._compute(task))
        objective.begin(round=task.round, rounds=task.rounds)
        memory = task.state.load(PERSONAL) if task.round else None
        if memory is not None and memory["round"] > task.round:
            # the server went back to an older checkpoint: a memory of this site's future must not leak into it
            logger.warning("the memory is of round %d, not of an earlier one: it is not used", memory["round"])
            memory = None
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
        figures = {**start.figures, "rate": objective.rate, "collapse_alarm": self._alarm(means["spread"])}
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

    def _alarm(self, spread: float) -> float:
        least = self.experiment.wing.collapse.alarm
        if spread < least:
            logger.warning(
                "projections have collapsed: their spread is %.3f, below %.2g (1 is even, 0 is one point)",
                spread,
                least,
            )
        return float(spread < least)
