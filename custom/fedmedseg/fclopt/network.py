"""Online and target network: the U-Net's encoder and a projector, and for the online one a predictor behind them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.network_settings import BasicUNetSection
from fedmedseg.networks.factory import build_segmentation
from fedmedseg.networks.unet_encoder import Projector, UNetEncoder

PROJECTOR, PREDICTOR = "projector.", "predictor."
TARGET = "target."
"""Beginning of the names under which the target network's parameters are kept at the server and travel."""


class BootstrapNetwork(nn.Module):
    """The online network. On the wire its encoder's tensors are named as the segmentation network's."""

    def __init__(self, *, experiment: Experiment) -> None:
        super().__init__()
        section = experiment.wing
        network = cast(BasicUNetSection, experiment.network)
        self.encoder = UNetEncoder(model=build_segmentation(experiment))
        self.projector = Projector(
            width=network.features[-1], hidden=section.hidden, out=section.projection, norm=section.head_norm
        )
        self.predictor = Projector(
            width=section.projection, hidden=section.hidden, out=section.projection, norm=section.head_norm
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projections and predictions, both (B, d), of images (B, 1, X, Y)."""
        projections = self.projector(self.encoder(images))
        return projections, self.predictor(projections)


class TargetNetwork(nn.Module):
    """What follows the online network: a copy of its encoder and projector, without gradients.

    It computes with the statistics of its batch, as the online network does in training.
    """

    def __init__(self, *, online: BootstrapNetwork) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(online.encoder)
        self.projector = copy.deepcopy(online.projector)
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Projections (B, d) of images (B, 1, X, Y)."""
        projections: torch.Tensor = self.projector(self.encoder(images))
        return projections


def wire_name(name: str) -> str:
    """Name of a tensor on the wire: an encoder's is the one it has in the segmentation network."""
    return name.removeprefix("encoder.")


def floating(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and floating-point buffers by their names on the wire; not copied."""
    return {
        wire_name(name): tensor
        for name, tensor in network.state_dict(keep_vars=True).items()
        if tensor.is_floating_point()
    }


def parameters_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by their names on the wire; not copied."""
    return {wire_name(name): parameter for name, parameter in network.named_parameters()}


@torch.no_grad()
def copy_into(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite every parameter and floating-point buffer that ``tensors`` names as on the wire; others stay."""
    for name, tensor in floating(network).items():
        if name in tensors:
            tensor.copy_(tensors[name])


@torch.no_grad()
def follow(target: TargetNetwork, online: BootstrapNetwork, momentum: float) -> None:
    """xi <- m xi + (1 - m) theta, in place, for every parameter of the target."""
    theirs, ours = parameters_of(target), parameters_of(online)
    names = sorted(theirs)
    followed = [theirs[name] for name in names]
    torch._foreach_mul_(followed, momentum)
    torch._foreach_add_(followed, [ours[name].detach() for name in names], alpha=1.0 - momentum)


def to_wire(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A target's tensors under their names on the wire; not copied."""
    return {f"{TARGET}{name}": tensor for name, tensor in target.items()}


def from_wire(shared: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The target's tensors among ``shared``, by their names in the online network; not copied."""
    return {name.removeprefix(TARGET): tensor for name, tensor in shared.items() if name.startswith(TARGET)}
