"""FLARE executor of supervised fine-tuning and evaluation: binds the segmentation learner every system shares."""

from __future__ import annotations

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import site_and_view


class CMRFineTuningExecutor(TrainingExecutor):
    """Runs `fine_tuning` and `evaluation` tasks on the site's own labelled cases."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.segmentation.learner import SegmentationLearner

        site, view = site_and_view(experiment, place)
        return SegmentationLearner(experiment=view, site=site)
