"""FCL at a site: one round of contrastive pretraining, from the server's tensors and the others' features on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.exchange import Features
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.seeding import derive_seed, seed_everything
from fedmedseg.core.training import run_steps
from fedmedseg.data.leaving import require_features
from fedmedseg.data.stacks import stack_figures
from fedmedseg.fcl.config import STAGE
from fedmedseg.fcl.monitor import feature_spread
from fedmedseg.fcl.noise import noisy
from fedmedseg.fcl.objective import ContrastiveObjective

if TYPE_CHECKING:
    from fedmedseg.data.site import Site
    from fedmedseg.data.volumes import Volumes

logger = logging.getLogger(__name__)

LEAVING = "leaving"
"""Noisy features that left, or may have: given again after a kill or a repeated question, as two draws of noise on the
same features would tell more than one."""


class ContrastiveLearner:
    """Pretrains a site's encoder; data and networks are built once per process, at the first task."""

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        self.experiment = experiment
        self.site = site

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
    def objective(self) -> ContrastiveObjective:
        """Both encoders and the bank over this site's volumes."""
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
        objective.begin(round=task.round, rounds=task.rounds, received=task.received)
        figures: dict[str, float] = {}
        if section.exchange:
            received = 0 if task.received is None else len(task.received)
            figures = {"bank/own": float(objective.bank.capacity), "bank/received": float(received)}
            figures |= stack_figures([self.volumes.stack(index) for index in range(len(self.volumes))])

        def prepare() -> None:
            objective.initialise(shared, self._memory(task), aborted=task.aborted)

        means = run_steps(objective, task=task, name=STAGE, steps=objective.steps, prepare=prepare)
        figures |= objective.figures
        features = self._leaving(task) if section.exchange else None
        figures |= self._collapse(feature_spread(objective.bank.rows.vectors))
        task.state.save("personal", {"round": task.round, **objective.memory()})
        return Reply(
            tensors=objective.shared(),
            metrics={**means, **figures, "set_aside": float(len(self.volumes.quarantined))},
            examples=len(self.volumes),
            steps=objective.steps,
            features=features,
        )

    def _memory(self, task: Task) -> Mapping[str, Any] | None:
        """What this site remembers of an earlier round than this, or None.

        Raises:
            FedMedSegError: nothing, and no server has anything to start from either (reason MISSING_TENSORS).
        """
        personal: Mapping[str, Any] | None = task.state.load("personal") if task.round else None
        if personal is not None and personal["round"] >= task.round:
            # the server went back to an older checkpoint: a memory of this site's future must not leak into it
            logger.warning("the memory is of round %d, not of an earlier one: it is not used", personal["round"])
            personal = None
        if task.round and personal is None:
            if self.experiment.wing.aggregation == "none":
                raise FedMedSegError(
                    "personal memory",
                    got=f"none of an earlier round in round {task.round}",
                    expected="the encoder of this site's last round: fcl.aggregation is none",
                    remedy="bring this site's state folder back, or run the study again with all sites from round 0",
                    reason=Reason.MISSING_TENSORS,
                )
            logger.warning("no memory of an earlier round: optimiser and momentum encoder start anew")
        return personal

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

    def _collapse(self, spread: float) -> dict[str, float]:
        least = self.experiment.wing.collapse.alarm
        alarm = spread < least
        if alarm:
            logger.warning("features have collapsed: spread %.3f, below %.2g of an even one", spread, least)
        return {"feature_std": spread, "collapse_alarm": float(alarm)}
