"""The server's side of publication: what each site published is kept apart and never averaged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.config import load_experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.place import place_of
from fedmedseg.segviz.publication import KIND, save_published


class PublishedModels(GuardedAggregator):
    """Judges what sites publish like any reply, and puts it beside the shared model, one file per site.

    Args:
        experiment_file: path of experiment.yaml, whose digest the files bear.
    """

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self._experiment = load_experiment(experiment_file)
        self.published: dict[str, dict[str, torch.Tensor]] = {}

    def combine(
        self,
        shared: Mapping[str, torch.Tensor],
        contributions: Mapping[str, Contribution],
        weights: Mapping[str, float],
    ) -> Mapping[str, torch.Tensor]:
        """No difference: the shared tensors stay zeros, and what came is kept by site."""
        self.published = {site: dict(one.differences) for site, one in contributions.items()}
        return {name: torch.zeros_like(tensor) for name, tensor in shared.items()}

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """Write a file per site into the job's run folder, if there is a job; none where every site declined."""
        self.published = {}
        made = super().aggregate(fl_ctx)
        if fl_ctx.get_job_id() is not None:
            folder = place_of(fl_ctx).run / "models" / KIND
            for site, tensors in self.published.items():
                save_published(folder / f"{site}.safetensors", tensors, experiment=self._experiment)
        return made
