"""FLARE executor of FedATA's pretraining: binds the masked self-distillation learner."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import site_and_view


class MaskedDistillationExecutor(TrainingExecutor):
    """Runs `pretraining` tasks (Dai et al. 2024, FedATA)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.fedata.learner import MaskedDistillationLearner

        site, view = site_and_view(experiment, place)
        return MaskedDistillationLearner(experiment=view, site=site)
