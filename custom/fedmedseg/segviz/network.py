"""Which tensors of the U-Net cross the wire: the trunk without, or with, the scale and shift of its norms."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedmedseg.core.config import Experiment
from fedmedseg.core.partition import Partition, partition

HEAD = "model.2"
"""The last up block of MONAI's UNet, the only one whose size follows from the number of classes."""
NORMS: tuple[type[nn.Module], ...] = (_BatchNorm, _InstanceNorm)


def shared_part(model: nn.Module, experiment: Experiment) -> Partition:
    """``model``, the U-Net of a site or of the study, as ``segviz.share`` and ``segviz.mode`` split it.

    ``fedbn`` (Li et al. 2021) keeps whole norm layers at the site, ``fedavg`` their running statistics alone. With a
    head per site the head stays there too; one model for all shares it. At full size 58 or 90 tensors are shared.

    Raises:
        ConfigurationError: ``fedbn`` for a network whose norms have no tensors, or nothing left to share.
    """
    section = experiment.wing
    return partition(
        model,
        without=(HEAD,) if section.mode == "heads" else (),
        personal_types=NORMS if section.share == "fedbn" else (),
    )


def shared_tensors(model: nn.Module, experiment: Experiment) -> dict[str, torch.Tensor]:
    """Copies of the shared tensors of ``model``, float32 on the CPU, in the network's order."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().clone() for name in shared_part(model, experiment).shared}


def private_tensors(model: nn.Module, experiment: Experiment) -> dict[str, torch.Tensor]:
    """Copies of all others: head, norms and running statistics, on the CPU."""
    shared = set(shared_part(model, experiment).shared)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items() if name not in shared}
