"""FedCRLD's network: a shared and a private encoder, the re-localization transformer, a private decoder [0, 1].

Deviations from the published code: logits leave the network (softmax belongs to loss and inference, which are shared
code), and the input is padded in-plane to a multiple of 8, so that skips and upsampled maps agree without padding.

[0] Qi et al., Contrastive Re-localization and History Distillation in Federated CMR Segmentation, MICCAI 2022
[1] https://github.com/JerryQseu/FedCRLD, Network.py
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.network_settings import RelocalizationSection
from fedmedseg.fedcrld.relocalization import GROUPS, Relocalization

GLOBAL = "globalnet"
"""The encoder that is shared: the first part of all its tensors' names."""
OUTPUT = "output"
"""The last layer, which alone knows how many structures there are."""


class Outputs(NamedTuple):
    """One forward pass."""

    logits: torch.Tensor
    """(B, classes, X, Y, Z)."""
    global_features: torch.Tensor
    """Bottleneck of the shared encoder, (B, 8 * width, Z, X/8, Y/8)."""
    local_features: torch.Tensor
    """Bottleneck of the private encoder, likewise."""


def block(channels: int, first: int, last: int) -> nn.Sequential:
    """Convolution in-plane to ``first`` channels, then one over slices too to ``last``; each normalised and leaky."""
    return nn.Sequential(
        nn.Conv3d(channels, first, kernel_size=(1, 3, 3), padding=(0, 1, 1)),
        nn.GroupNorm(GROUPS, first),
        nn.LeakyReLU(),
        nn.Conv3d(first, last, kernel_size=3, padding=1),
        nn.GroupNorm(GROUPS, last),
        nn.LeakyReLU(),
    )


class Encoder(nn.Module):
    """Four blocks of ``width``, 2, 4 and 8 times ``width`` channels; halved in-plane between them, never in depth."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                block(1, width // 2, width),
                block(width, width, 2 * width),
                block(2 * width, 2 * width, 4 * width),
                block(4 * width, 4 * width, 8 * width),
            ]
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps of (B, 1, D, H, W) at 1, 1/2, 1/4 and 1/8 of the in-plane size."""
        maps = [self.blocks[0](images)]
        for following in list(self.blocks)[1:]:
            maps.append(following(functional.max_pool3d(maps[-1], kernel_size=(1, 2, 2))))
        return maps


class Decoder(nn.Module):
    """Three times up in-plane, each with the private encoder's map of that size beside it."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        sizes = ((16 * width, 8 * width, 4 * width), (4 * width, 4 * width, 2 * width), (2 * width, 2 * width, width))
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=(1, 2, 2), stride=(1, 2, 2)) for coarse, fine, _ in sizes
        )
        self.blocks = nn.ModuleList(block(fine + skip, skip, skip) for _, fine, skip in sizes)

    def forward(self, relocated: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        """(B, 16 * width, D, H/8, W/8) to (B, width, D, H, W)."""
        x = relocated
        for up, following, skip in zip(self.ups, self.blocks, reversed(skips), strict=True):
            x = following(torch.cat([up(x), skip], dim=1))
        return x


class RelocalizationNetwork(nn.Module):
    """33,240,324 parameters with four classes at the published width of 64; 5,478,912 in 32 tensors are shared.

    Args:
        classes: background included.
        width: channels of the first block.
        faithful_reshape: tokens as in the published code (``fedcrld.relocalization``).
    """

    def __init__(self, *, classes: int, width: int = 64, faithful_reshape: bool = False) -> None:
        super().__init__()
        self.globalnet = Encoder(width=width)
        self.localnet = Encoder(width=width)
        self.relocalization = Relocalization(channels=8 * width, inner=4 * width, faithful_reshape=faithful_reshape)
        self.decoder = Decoder(width=width)
        # last, so that networks of sites with other label maps draw the same weights before it
        self.output = nn.Conv3d(width, classes, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, X, Y, Z) of images (B, 1, X, Y, Z); slices lie along Z."""
        return self.outputs(images).logits

    def outputs(self, images: torch.Tensor) -> Outputs:
        """Logits with both bottlenecks."""
        x, y = images.shape[2:4]
        slices = functional.pad(images.permute(0, 1, 4, 2, 3), (0, -y % 8, 0, -x % 8))
        shared, private = self.globalnet(slices)[-1], self.localnet(slices)
        decoded = self.decoder(self.relocalization(shared, private[-1]), private[:-1])
        logits = self.output(decoded)[..., :x, :y].permute(0, 1, 3, 4, 2)
        return Outputs(logits, shared, private[-1])


def build(data: DataSection, section: RelocalizationSection) -> RelocalizationNetwork:
    """The network of one site; weights come from torch's global generator."""
    return RelocalizationNetwork(classes=data.classes, width=section.width, faithful_reshape=section.faithful_reshape)
