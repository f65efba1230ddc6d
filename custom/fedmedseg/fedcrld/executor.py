"""FLARE executor of FedCRLD's re-localization: binds its learner."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import site_and_view


class RelocalizationExecutor(TrainingExecutor):
    """Runs `relocalization` tasks (Qi et al. 2022, FedCRLD)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.fedcrld.learner import RelocalizationLearner

        site, view = site_and_view(experiment, place)
        return RelocalizationLearner(experiment=view, site=site)
