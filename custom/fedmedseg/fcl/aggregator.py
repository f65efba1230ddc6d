"""FCL's server rule as a FLARE aggregator: the mean over cases, and a word where sites' parts cannot correspond."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.config import load_experiment
from fedmedseg.core.exchange import rows_in
from fedmedseg.data.stacks import mismatches


class ContrastiveAggregator(SharedKeysAggregator):
    """FedAvg (McMahan et al. 2017) over encoder and projector (Wu et al. 2021).

    Features are checked, pooled and given to the other sites by every aggregator alike (``core.exchange``); how many a
    site gave stands in ``notes`` as ``features``. ``notes`` hold ``correspondence``, too: in words, where the stacks of
    the sites differ so much that equally numbered parts cannot show the same region.

    Args:
        experiment_file: path of experiment.yaml; its ``fcl`` section says when that is.
    """

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self._section = load_experiment(experiment_file).wing

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """As FedAvg does, after a look at the sites' figures."""
        if self._section.exchange:
            told = {site: contribution.metrics for site, contribution in sorted(self.contributions.items())}
            said = mismatches(told, factor=self._section.correspondence.factor)
            self.notes["correspondence"] = said
            self.notes["features"] = {site: rows_in(one.features) for site, one in sorted(self.contributions.items())}
            for line in said:
                self.log_warning(fl_ctx, f"round {self.round.number if self.round else '?'}: {line}")
        return super().aggregate(fl_ctx)
