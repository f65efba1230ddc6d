"""Which tensors of the network the sites share: the switch ``fedcrld.share``."""

from __future__ import annotations

from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.partition import partition
from fedmedseg.fedcrld.network import GLOBAL, OUTPUT


def shared_names(network: nn.Module, experiment: Experiment) -> list[str]:
    """State-dict names of the tensors that cross the wire, in the network's order; parameters only.

    With ``share: nothing`` those of the global encoder, which then are sent once and never come back. The output layer
    stays at the sites where they do not all have one label map: tensors of one name must mean one thing.
    """
    share = experiment.wing.share
    if share in ("encoder", "nothing"):
        return list(partition(network, within=(GLOBAL,)).shared)
    without = () if one_label_map(experiment) else (OUTPUT,)
    norms = (nn.GroupNorm,) if share == "everything_but_norms" else ()
    return list(partition(network, without=without, personal_types=norms).shared)


def one_label_map(experiment: Experiment) -> bool:
    """Whether all sites of the study mark the same structures under the same numbers."""
    return all(one.labels == experiment.data.labels for one in experiment.data.alternatives)
