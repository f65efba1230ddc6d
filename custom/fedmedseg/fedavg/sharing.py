"""Which tensors the sites share, and what else the server keeps beside them, by the beginning of their names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedmedseg.core.config import Experiment
from fedmedseg.core.partition import Partition, partition
from fedmedseg.fedavg.config import ServerSection

CONTROL = "control."
"""SCAFFOLD's common control variates: one tensor for each shared parameter."""
SERVER = "server."
"""State of FedOpt's optimiser, which never leaves the server: ``server.<moment>.<parameter>`` and ``server.step``."""
STEP = f"{SERVER}step"
NORMS: tuple[type[nn.Module], ...] = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
"""What ``fedbn`` keeps at a site."""
MOMENTS = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq"), "adagrad": ("sum",)}
"""What torch's optimisers call their state of one parameter."""


def shared_part(network: nn.Module, experiment: Experiment) -> Partition:
    """The whole network, running statistics included; under ``fedbn`` all but its norm layers.

    Raises:
        ConfigurationError: ``fedbn`` for a network without a norm that has tensors.
    """
    kept = NORMS if experiment.wing.strategy == "fedbn" else ()
    return partition(network, personal_types=kept, buffers=True)


def shared_tensors(network: nn.Module, experiment: Experiment) -> dict[str, torch.Tensor]:
    """Copies of the shared tensors of ``network``, float32 on the CPU, in the network's order."""
    state = network.state_dict()
    return {name: state[name].detach().cpu().clone() for name in shared_part(network, experiment).shared}


def private_tensors(network: nn.Module, experiment: Experiment) -> dict[str, torch.Tensor]:
    """Copies of the tensors that ``fedbn`` keeps at the site, running statistics and their counts among them."""
    state, part = network.state_dict(), shared_part(network, experiment)
    return {name: state[name].detach().cpu().clone() for name in (*part.personal, *part.local)}


def first_controls(network: nn.Module) -> dict[str, torch.Tensor]:
    """Control variates before the first round: zeros."""
    return {f"{CONTROL}{name}": torch.zeros_like(tensor.detach()) for name, tensor in network.named_parameters()}


def moments(section: ServerSection) -> tuple[str, ...]:
    """What the server's optimiser keeps of every parameter."""
    return () if section.optimizer == "sgd" and not section.momentum else MOMENTS[section.optimizer]


def first_moments(network: nn.Module, section: ServerSection) -> dict[str, torch.Tensor]:
    """State of the server's optimiser before its first step: zeros."""
    parameters = dict(network.named_parameters())
    kept = {
        f"{SERVER}{moment}.{name}": torch.zeros_like(tensor.detach())
        for moment in moments(section)
        for name, tensor in parameters.items()
    }
    return {**kept, STEP: torch.zeros(1)}


def split(shared: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a site is sent, apart: the network's tensors, and control variates by their parameters' names."""
    network = {name: tensor for name, tensor in shared.items() if not name.startswith((CONTROL, SERVER))}
    controls = {name.removeprefix(CONTROL): tensor for name, tensor in shared.items() if name.startswith(CONTROL)}
    return network, controls
