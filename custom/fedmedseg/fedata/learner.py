"""FedATA at a site: one round of federated pretraining, from the server's tensors to the site's reply."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.fedata.monitor import collapsed
from fedmedseg.fedata.objective import MaskedDistillationObjective
from fedmedseg.segmentation.site_learner import PretrainingLearner
from fedmedseg.segmentation.stages import PERSONAL

if TYPE_CHECKING:
    from fedmedseg.data.volumes import Volumes

logger = logging.getLogger(__name__)
STAGE = "pretraining"


class OneVolume:
    """A single volume of a collection, as ``image_crop`` reads it: for several crops of the same one."""

    def __init__(self, *, volumes: Volumes, index: int) -> None:
        self.volumes, self.index = volumes, index

    def __len__(self) -> int:
        return 1

    def image(self, index: int) -> np.ndarray:
        """The volume, (1, X, Y, Z)."""
        return self.volumes.image(self.index + index)

    def tissue(self, index: int) -> float:
        """Normalised intensity above which a voxel is tissue."""
        return self.volumes.tissue(self.index + index)

    def slice_tissue(self, index: int) -> np.ndarray:
        """Share of tissue in each slice, (Z,)."""
        return self.volumes.slice_tissue(self.index + index)


class MaskedDistillationLearner(PretrainingLearner):
    """Pretrains a site's encoder; data and network are built once per process, at the first task."""

    @cached_property
    def objective(self) -> MaskedDistillationObjective:
        """Student and teacher over this site's volumes."""
        return self._build()

    def _build(self) -> MaskedDistillationObjective:
        from fedmedseg.data.sampling import image_crop

        volumes, data = self.volumes, self.experiment.data
        return MaskedDistillationObjective(
            experiment=self.experiment,
            volumes=len(volumes),
            crop=lambda volume, rng: image_crop(cast("Volumes", OneVolume(volumes=volumes, index=volume)), rng, data),
            device=torch.device(self.site.device),
        )

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """One round: personal initialisation, ``local_steps`` steps, reply with exactly the shared tensors.

        What the site must remember is saved as ``personal`` before the reply is handed over: ``round``, ``tensors``
        (named as the shared ones), ``teacher``, ``pretext``, ``mixing`` and ``reference``. A site that missed rounds
        mixes from the last one it did; one that remembers none in a later round starts from the server's tensors, as
        in round 0, and says so (``memory_missing``). Where the pretext has no teacher, the reply has no figures of one.

        Raises:
            Aborted: the federation asked to stop; the task can be given again and continues.
            DataError: this site has no usable volume.
            FedMedSegError: the loss stopped being finite, or nothing is remembered in a later round of a pretraining
                without a server (reason MISSING_TENSORS).
            ConfigurationError: a stage this learner does not do.
        """
        if task.stage != STAGE:
            raise ConfigurationError("stage", got=repr(task.stage), expected=repr(STAGE))
        objective = self.objective
        section = self.experiment.wing
        crops = section.volumes_per_step * section.crops_per_volume
        objective.use(self.way(task, crops=crops, trial=lambda: self._build().trial()))
        objective.begin(round=task.round, rounds=task.rounds)
        # before the loop, which prepares nothing where it continues after a kill
        objective.stay_near(shared)
        steps = section.local_steps

        alone = "fedata.server_aggregation is none" if section.server_aggregation == "none" else None

        def prepare() -> None:
            personal = self.remembered_before(task, alone=alone)
            objective.initialise(shared, personal, aborted=task.aborted)

        means = run_steps(objective, task=task, name=STAGE, steps=steps, prepare=prepare)
        if "mixing/passes" in objective.figures:
            logger.info(
                "mixing took %.4f of the server's tensors in scope in %.0f pass(es), loss %.4f to %.4f",
                *(
                    objective.figures[f"mixing/{figure}"]
                    for figure in ("weight_mean", "passes", "loss_first", "loss_last")
                ),
            )
        if "mixing/mu" in objective.figures:
            logger.info("%.4f of this site's own model was kept", objective.figures["mixing/mu"])
        task.state.save(PERSONAL, {"round": task.round, **objective.memory()})
        alarm = {"collapse_alarm": self._alarm(objective, means["teacher_std"])} if "teacher_std" in means else {}
        return Reply(
            tensors=objective.shared(),
            metrics={**means, **objective.figures, **alarm, "set_aside": float(len(self.volumes.quarantined))},
            examples=len(self.volumes),
            steps=steps,
        )

    def _alarm(self, objective: MaskedDistillationObjective, spread: float) -> float:
        assert objective.reference is not None
        share = self.experiment.wing.collapse.alarm
        alarm = collapsed(spread, objective.reference, alarm=share)
        if alarm:
            logger.warning(
                "targets have collapsed: spread over tokens %.2e, below %.2g times the %.2e of the first step",
                spread,
                share,
                objective.reference,
            )
        return float(alarm)
