"""FLARE executor of SegViz: binds the learner of a site that marks some of the study's organs."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import open_site


class PartialLabelExecutor(TrainingExecutor):
    """Runs `training`, `head_tuning`, `evaluation` and `publication` tasks (Kanhere et al. 2023, SegViz)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.segviz.learner import PartialLabelLearner

        site = open_site(
            experiment, name=place.name, local=place.local, workspace=place.workspace, simulated=place.simulated
        )
        return PartialLabelLearner(experiment=experiment, site=site)
