"""FLARE executor of FCL's contrastive pretraining: binds its learner."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import site_and_view


class ContrastiveExecutor(TrainingExecutor):
    """Runs `pretraining` tasks (Wu et al. 2021, FCL)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.fcl.learner import ContrastiveLearner

        site, view = site_and_view(experiment, place)
        return ContrastiveLearner(experiment=view, site=site)
