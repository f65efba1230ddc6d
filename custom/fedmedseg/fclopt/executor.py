"""FLARE executor of FCLOpt's pretraining: binds the learner of online and target network."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import site_and_view


class BootstrapExecutor(TrainingExecutor):
    """Runs `pretraining` tasks (Wu et al. 2022, FCLOpt)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.fclopt.learner import BootstrapLearner

        site, view = site_and_view(experiment, place)
        return BootstrapLearner(experiment=view, site=site)
