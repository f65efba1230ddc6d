"""Fine-tuning from each start and the one test: the stages that all systems share, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.learner import Reply, Task
from fedmedseg.data.site import Site
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.local import fine_tune
from fedmedseg.segmentation.site_learner import SiteLearner
from fedmedseg.segmentation.stages import is_federated
from fedmedseg.segmentation.testing import score_models
from fedmedseg.segmentation.together import adopt, fine_tune_together


class SegmentationLearner(SiteLearner):
    """Runs the stages ``fine_tuning`` and ``evaluation`` of any system whose section lists ``starts``."""

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        super().__init__(experiment=experiment, site=site)
        self.bench = Bench(experiment=experiment, site=site)

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """Do one task.

        Raises:
            Aborted: the federation asked to stop; the task continues when it is given again.
            FedMedSegError: with the reason the server may be told.
        """
        federated = is_federated(self.experiment)
        if task.stage == "fine_tuning":
            return (fine_tune_together if federated else fine_tune)(self.bench, task, shared)
        if task.stage == "evaluation":
            chosen = adopt(self.bench, task, shared) if federated else {}
            reply = score_models(self.bench, task)
            return replace(reply, metrics={**reply.metrics, **chosen})
        raise ConfigurationError("stage", got=task.stage, expected="fine_tuning or evaluation")
