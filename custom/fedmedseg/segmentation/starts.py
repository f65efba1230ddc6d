"""What fine-tuning starts from: one and the same initial network, with or without a pretrained encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.seeding import derive_seed
from fedmedseg.networks.factory import build_segmentation
from fedmedseg.segmentation.models import check_tensors


def initial_network(experiment: Experiment) -> nn.Module:
    """The study's network with weights that depend on its seed alone.

    Every site, start and process gets the same decoder, so that starts differ in the encoder and in
    nothing else. The global generators are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.seed, "segmentation", "initial network"))
        return build_segmentation(experiment)


def encoder_tensors(
    tensors: Mapping[str, torch.Tensor],
    names: Sequence[str],
    initial: Mapping[str, torch.Tensor],
    *,
    source: str,
) -> dict[str, torch.Tensor]:
    """The tensors called ``names`` among ``tensors``, fit to be loaded.

    Others (a mask token, a predictor) served pretraining only and are left aside. ``initial`` is the
    network's state dict.

    Raises:
        FedMedSegError: one is missing, or of another shape or type than the network's, or not finite.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise FedMedSegError(
            f"{source} encoder",
            got=f"{len(missing)} of {len(names)} tensors missing, first {missing[0]}",
            expected="every encoder tensor of the study's network",
            remedy="run the pretraining stage before this one",
            reason=Reason.MISSING_TENSORS,
        )
    chosen = {name: tensors[name] for name in names}
    check_tensors(chosen, initial, source=f"{source} encoder")
    return chosen
