"""FLARE executor of the baseline: binds its learner, and hands it FLARE's own parts of the strategies."""

from __future__ import annotations

from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper

from fedmedseg.core.config import Experiment
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner
from fedmedseg.core.place import Place
from fedmedseg.data.site import site_and_view
from fedmedseg.fedavg.parts import Parts

# of ditto FLARE's helper is not used: it keeps a site's network in a pickle; its penalty is the same PTFedProxLoss
FLARE = Parts(proximal=PTFedProxLoss, scaffold=PTScaffoldHelper)


class FederatedAveragingExecutor(TrainingExecutor):
    """Runs `training`, `fine_tuning` and `evaluation` tasks (McMahan et al. 2017, and what builds on it)."""

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner at this site."""
        from fedmedseg.fedavg.learner import FederatedAveragingLearner

        site, view = site_and_view(experiment, place)
        return FederatedAveragingLearner(experiment=view, site=site, parts=FLARE)
