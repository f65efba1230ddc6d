"""Encoder and projector as one network: which of its tensors are shared, and the momentum encoder that follows it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.fcl.config import PROJECTOR
from fedmedseg.networks.factory import encoder_names
from fedmedseg.networks.unet_encoder import Projector, UNetEncoder
from fedmedseg.segmentation.starts import initial_network

Tensors = Mapping[str, torch.Tensor]


class ContrastiveNetwork(nn.Module):
    """The segmentation network's encoder and a projector behind it; features have length 1.

    The encoder starts from the very weights that fine-tuning ``scratch`` starts from. The projector's come from torch's
    global generator as the caller seeded it.
    """

    def __init__(self, *, experiment: Experiment) -> None:
        super().__init__()
        section = experiment.wing.projector
        model = initial_network(experiment)
        self.encoder_names = encoder_names(model, experiment)
        self.encoder = UNetEncoder(model=model)
        width = experiment.network.features[-1]  # type: ignore[union-attr]
        self.projector = Projector(width=width, hidden=section.hidden or width, out=section.out, norm=section.norm)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, out) of length 1, float32, of images (B, 1, X, Y)."""
        return nn.functional.normalize(self.projector(self.encoder(images)).float(), dim=1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is shared, by its name on the wire: parameters and floating-point running statistics; not copied."""
        encoder, projector = self.encoder.state_dict(keep_vars=True), self.projector.state_dict(keep_vars=True)
        shared = {name: encoder[name] for name in self.encoder_names}
        return shared | {PROJECTOR + name: tensor for name, tensor in projector.items() if tensor.is_floating_point()}

    def shared(self) -> dict[str, torch.Tensor]:
        """Copies of ``tensors`` on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.tensors().items()}

    @torch.no_grad()
    def load_shared(self, tensors: Tensors) -> None:
        """Take over ``tensors``, which may hold more than the network's own.

        Raises:
            KeyError: one of the network's own is missing.
        """
        for name, own in self.tensors().items():
            own.copy_(tensors[name])


def momentum_network(network: ContrastiveNetwork) -> ContrastiveNetwork:
    """A copy that takes no gradient."""
    follower = copy.deepcopy(network)
    follower.requires_grad_(False)
    return follower


@torch.no_grad()
def follow(key: ContrastiveNetwork, query: ContrastiveNetwork, momentum: float) -> None:
    """f_k <- m f_k + (1 - m) f_q, in place, for all parameters; running statistics are each network's own."""
    own, others = dict(key.named_parameters()), dict(query.named_parameters())
    names = sorted(own)
    followed: list[torch.Tensor] = [own[name] for name in names]
    torch._foreach_mul_(followed, momentum)
    torch._foreach_add_(followed, [others[name].detach() for name in names], alpha=1.0 - momentum)
