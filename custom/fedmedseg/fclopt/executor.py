"""FLARE executor of FCLOpt's pretraining: binds the learner of online and target network."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import open_site
from fedmedseg.data.views import site_view


class BootstrapExecutor(TrainingExecutor):
    """Runs `pretraining` tasks (Wu et al. 2022, FCLOpt)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.fclopt.learner import BootstrapLearner

        site = open_site(
            experiment, name=place.name, local=place.local, workspace=place.workspace, simulated=place.simulated
        )
        view = site_view(experiment, site.datasets, preferred=site.prefers)
        return BootstrapLearner(experiment=view, site=site)
