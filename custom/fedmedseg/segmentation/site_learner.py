"""What the learners of all systems tell FLARE's side of their site, and the images that pretraining reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmedseg.core.compute import ComputeChoice, Trial
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.networks.timing import choose
from fedmedseg.segmentation.stages import PERSONAL

if TYPE_CHECKING:
    from fedmedseg.data.site import Site
    from fedmedseg.data.volumes import Volumes

logger = logging.getLogger(__name__)


class SiteLearner:
    """A learner at a site; ``experiment`` is the study as the site sees it (``data.views``)."""

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        self.experiment = experiment
        self.site = site

    @property
    def state_root(self) -> Path:
        """Folder on the site's disk under which its state is kept."""
        return self.site.state_root

    @property
    def needs_approval(self) -> bool:
        """Whether this site's people decide on each job."""
        return self.site.approval == "each_job"


class PretrainingLearner(SiteLearner):
    """A learner that pretrains without labels; data and networks are built once per process, at the first task."""

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        super().__init__(experiment=experiment, site=site)
        self._way: ComputeChoice | None = None

    @cached_property
    def volumes(self) -> Volumes:
        """The site's images, labelled or not; labels are not read."""
        from fedmedseg.data.volumes import Volumes

        return Volumes(site=self.site, experiment=self.experiment, section="unlabeled")

    def way(self, task: Task, *, crops: int, trial: Callable[[], Trial]) -> ComputeChoice:
        """How a step on ``crops`` crops is computed here (``networks.timing``); asked once per process, since a full
        disk would not remember.
        """
        if self._way is None:
            self._way = choose(
                self.experiment,
                work="pretext",
                shape=(crops, 1, *self.experiment.data.crop),
                trial=trial,
                cache=self.site.cache,
                device=self.site.device,
                aborted=task.aborted,
            )
        return self._way

    @staticmethod
    def remembered(task: Task, *, until: int) -> Mapping[str, Any] | None:
        """What this site saved as ``personal`` when it did its last round, or None; in round 0 always.

        Nothing of a round after ``until``: where the server went back to an older checkpoint, a memory of this site's
        future must not leak into it.
        """
        memory: Mapping[str, Any] | None = task.state.load(PERSONAL) if task.round else None
        if memory is not None and memory["round"] > until:
            logger.warning("the memory is of round %d, not of an earlier one: it is not used", memory["round"])
            return None
        return memory

    def remembered_before(self, task: Task, *, alone: str | None) -> Mapping[str, Any] | None:
        """``remembered`` of a round before this one. That there is none in a later round is logged.

        ``alone`` names the setting, with its value, that has sites pretrain without a server.

        Raises:
            FedMedSegError: nothing is remembered, and no server has anything to start from (reason MISSING_TENSORS).
        """
        memory = self.remembered(task, until=task.round - 1)
        if not task.round or memory is not None:
            return memory
        if alone is not None:
            raise FedMedSegError(
                "personal memory",
                got=f"none of an earlier round in round {task.round}",
                expected=f"the networks of this site's last round: {alone}",
                remedy="bring this site's state folder back, or run the study again with all sites from round 0",
                reason=Reason.MISSING_TENSORS,
            )
        logger.warning("no memory of an earlier round: this site starts from the server's tensors, as in round 0")
        return None
