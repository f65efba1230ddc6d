"""FLARE executor of supervised fine-tuning and evaluation: binds the segmentation learner every system shares."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import open_site
from fedmedseg.data.views import site_view


class CMRFineTuningExecutor(TrainingExecutor):
    """Runs `fine_tuning` and `evaluation` tasks on the site's own labelled cases."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.segmentation.learner import SegmentationLearner

        site = open_site(
            experiment, name=place.name, local=place.local, workspace=place.workspace, simulated=place.simulated
        )
        view = site_view(experiment, site.datasets, preferred=site.prefers)
        return SegmentationLearner(experiment=view, site=site)
