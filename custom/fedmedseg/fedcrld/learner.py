"""FedCRLD at a site: one round of re-localization, from the server's encoder to the site's reply."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.data.site import Site
from fedmedseg.fedcrld.batches import EpochBatches
from fedmedseg.fedcrld.config import STAGE
from fedmedseg.fedcrld.network import RelocalizationNetwork
from fedmedseg.fedcrld.objective import RelocalizationObjective
from fedmedseg.fedcrld.sharing import shared_names
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.site_learner import SiteLearner
from fedmedseg.segmentation.stages import PERSONAL
from fedmedseg.segmentation.together import better, is_due, validated

logger = logging.getLogger(__name__)

MEMORY = "client"
"""What a site remembers between rounds."""
BEST = "best_personal"
"""Which round the site's model is of, and how it validated."""


class RelocalizationLearner(SiteLearner):
    """Trains a site's client and bank; data and networks are built once per process, at the first task.

    ``experiment`` is the site's view of the study: its own label map.
    """

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        super().__init__(experiment=experiment, site=site)
        self.bench = Bench(experiment=experiment, site=site)
        self._objective: RelocalizationObjective | None = None

    @cached_property
    def batches(self) -> EpochBatches:
        """The site's labelled volumes."""
        return EpochBatches(volumes=self.bench.training, experiment=self.experiment, site=self.site.name)

    def objective(self, task: Task) -> RelocalizationObjective:
        """Client and bank over this site's volumes."""
        if self._objective is None:
            network = cast(RelocalizationNetwork, self.bench.model)
            self._objective = RelocalizationObjective(
                experiment=self.experiment,
                network=network,
                batches=self.batches,
                shared=tuple(shared_names(network, self.experiment)),
                device=torch.device(self.site.device),
                compute=self.bench.way("supervised", task),
            )
        return self._objective

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """One round: the server's tensors over the site's own client, local steps, reply with the shared tensors.

        What the site must remember is saved as ``client`` before the reply is handed over: ``round``, ``tensors`` (all
        that is not shared) and ``bank``. A site that remembers none in a later round starts its private part from
        the initial weights, and says so (``memory_missing``). Its model of the round that validated best is on its disk
        as ``personal``, where evaluation finds it.

        Raises:
            Aborted: the federation asked to stop; the task can be given again and continues.
            DataError: this site has no usable labelled volume (reason NO_CASES).
            FedMedSegError: the loss stopped being finite.
            ConfigurationError: a stage this learner does not do.
        """
        if task.stage != STAGE:
            raise ConfigurationError("stage", got=repr(task.stage), expected=repr(STAGE))
        section, batches = self.experiment.wing, self.batches
        steps = section.local_steps or section.local_epochs * math.ceil(
            len(batches) / self.experiment.segmentation.batch
        )
        objective = self.objective(task)
        objective.begin(first_step=task.round * steps)
        figures = {"set_aside": float(len(self.bench.training.quarantined) + batches.left_out)}

        def prepare() -> None:
            memory = self._memory(task)
            if task.round and memory is None:
                figures["memory_missing"] = 1.0
            # a site that trains alone goes on from its own encoder
            objective.start({} if memory is not None and section.share == "nothing" else shared, memory)

        means = run_steps(objective, task=task, name=STAGE, steps=steps, prepare=prepare)
        task.state.save(MEMORY, {"round": task.round, **objective.memory()})
        figures |= self._choose(task, steps)
        return Reply(tensors=objective.trained(), metrics={**means, **figures}, examples=len(batches), steps=steps)

    def _memory(self, task: Task) -> Mapping[str, Any] | None:
        """What this site remembers of an earlier round, or None."""
        memory: Mapping[str, Any] | None = task.state.load(MEMORY) if task.round else None
        if memory is not None and memory["round"] >= task.round:
            # the server went back to an older checkpoint: a memory of this site's future must not leak into it
            logger.warning("the memory is of round %d, not of an earlier one: it is not used", memory["round"])
            memory = None
        if task.round and memory is None:
            logger.warning("no memory of an earlier round: what is not shared starts from the initial weights")
        return memory

    def _choose(self, task: Task, steps: int) -> dict[str, float]:
        """Make the model as it now is the site's own where no earlier round validated better; figures of the choice.

        Rounds are looked at where ``segmentation.validate_every`` steps are full, and the last.
        """
        done = task.round + 1
        if not is_due(done, task.rounds, task.rounds * steps, self.experiment.segmentation.validate_every):
            return {}
        dice = validated(self.bench, task)
        kept: dict[str, Any] | None = task.state.load(BEST)
        # what is kept of a later round does not count: the server then went back to an older checkpoint
        if kept is None or kept["rounds"] > done or better(dice, kept["dice"]):
            kept = {"rounds": done, "dice": dice}
            tensors = {name: tensor.detach().cpu() for name, tensor in self.bench.model.state_dict().items()}
            self.bench.finish(PERSONAL, tensors, task, key=f"{task.stage}|{task.base}", metrics={})
            task.state.save(BEST, kept)
        figures = {f"best_round/{PERSONAL}": float(kept["rounds"])}
        return figures if dice is None else {**figures, f"validation_dice/{PERSONAL}": dice}
