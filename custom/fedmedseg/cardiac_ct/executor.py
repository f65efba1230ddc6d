"""FLARE executor of federated cardiac CT: binds the learner of a site, whatever its cases annotate."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import site_and_view


class KnowledgeDistillationExecutor(TrainingExecutor):
    """Runs every stage from the task CNNs to the one test (Tölle et al. 2025)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.cardiac_ct.learner import KnowledgeDistillationLearner

        site, view = site_and_view(experiment, place)
        return KnowledgeDistillationLearner(experiment=view, site=site)
