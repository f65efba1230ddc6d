"""FCL at a site: one round of contrastive pretraining, from the server's tensors and the others' features on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from fedmedseg.core.errors import ConfigurationError, Reason
from fedmedseg.core.exchange import Features
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.seeding import derive_seed, seed_everything
from fedmedseg.core.training import run_steps
from fedmedseg.data.leaving import require_features
from fedmedseg.data.slices import require_parts
from fedmedseg.data.stacks import stack_figures
from fedmedseg.fcl.config import STAGE
from fedmedseg.fcl.noise import noisy
from fedmedseg.fcl.objective import ContrastiveObjective
from fedmedseg.segmentation.site_learner import PretrainingLearner
from fedmedseg.segmentation.slice_pretraining import feature_spread, watched
from fedmedseg.segmentation.stages import PERSONAL

LEAVING = "leaving"
"""Noisy features that left, or may have: given again after a kill or a repeated question, as two draws of noise on the
same features would tell more than one."""


class ContrastiveLearner(PretrainingLearner):
    """Pretrains a site's encoder; data and networks are built once per process, at the first task."""

    @cached_property
    def objective(self) -> ContrastiveObjective:
        """Both encoders and the bank over this site's volumes.

        Raises:
            DataError: a volume too shallow for ``fcl.partition``.
        """
        section = self.experiment.wing
        require_parts(self.volumes, section.parts, section.partition, system="fcl")
        return self._build()

    def _build(self) -> ContrastiveObjective:
        return ContrastiveObjective(
            experiment=self.experiment, volumes=self.volumes, device=torch.device(self.site.device)
        )

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """One round: encoders and bank made ready, local steps, reply with shared tensors and features.

        What the site must remember is saved as ``personal`` before the reply is handed over: ``round``, ``tensors``
        (named as the shared ones), ``key``, ``optimizer`` and ``bank``. A site that missed rounds goes on with what it
        remembers of the last one it did; one that remembers none in a later round starts as in round 0, and says so
        (``memory_missing``).

        Raises:
            Aborted: the federation asked to stop; the task can be given again and continues.
            DataError: this site has no usable volume.
            FedMedSegError: the site's own file keeps its features here (reason DENIED); the loss stopped being finite;
                or nothing is remembered in a later round of a pretraining without a server (reason MISSING_TENSORS).
            ConfigurationError: a stage this learner does not do.
        """
        if task.stage != STAGE:
            raise ConfigurationError("stage", got=repr(task.stage), expected=repr(STAGE))
        section = self.experiment.wing
        if section.exchange and not (self.site.simulated and self.site.privacy is None):
            # before any work, not when the filters would block the reply
            require_features(self.site.privacy, reason=Reason.DENIED)
        objective = self.objective
        crops = section.volumes_per_step * section.parts
        objective.use(self.way(task, crops=crops, trial=lambda: self._build().trial()))
        objective.begin(round=task.round, rounds=task.rounds, received=task.received)
        figures: dict[str, float] = {}
        if section.exchange:
            received = 0 if task.received is None else len(task.received)
            figures = {"bank/own": float(objective.bank.capacity), "bank/received": float(received)}
            figures |= stack_figures([self.volumes.stack(index) for index in range(len(self.volumes))])

        alone = "fcl.aggregation is none" if section.aggregation == "none" else None

        def prepare() -> None:
            objective.initialise(shared, self.remembered_before(task, alone=alone), aborted=task.aborted)

        means = run_steps(objective, task=task, name=STAGE, steps=objective.steps, prepare=prepare)
        figures |= objective.figures
        features = self._leaving(task) if section.exchange else None
        figures |= watched(feature_spread(objective.bank.rows.vectors), section.collapse)
        task.state.save(PERSONAL, {"round": task.round, **objective.memory()})
        return Reply(
            tensors=objective.shared(),
            metrics={**means, **figures, "set_aside": float(len(self.volumes.quarantined))},
            examples=len(self.volumes),
            steps=objective.steps,
            features=features,
        )

    def _leaving(self, task: Task) -> Features:
        """The features of this round's reply; the same, to the last bit of noise, when the task is given again."""
        seed_everything(derive_seed(task.seed, task.site, task.stage, LEAVING, task.round))
        features = self.objective.leaving(aborted=task.aborted)
        noise = self.experiment.wing.noise
        if noise.sigma == 0.0:
            return features
        key, saved = f"{task.round}|{task.base}", task.state.load(LEAVING)
        if saved is None or saved["key"] != key:
            vectors = noisy(features.vectors, sigma=noise.sigma, renormalise=noise.renormalise)
            saved = {"key": key, "vectors": vectors, "parts": features.parts}
            task.state.save(LEAVING, saved)
        return Features(vectors=saved["vectors"], parts=saved["parts"])
