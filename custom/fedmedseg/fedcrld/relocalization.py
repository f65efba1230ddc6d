"""The re-localization transformer: what of the shared encoder's view belongs to this site, by cross attention [0].

The published code [1] forms tokens by a raw ``reshape`` of (1, C, D, H, W), which mixes channels and positions in the
rows and in the values; here tokens are positions. ``faithful_reshape`` computes as published.

[0] Qi et al., Contrastive Re-localization and History Distillation in Federated CMR Segmentation, MICCAI 2022
[1] https://github.com/JerryQseu/FedCRLD, Network.py
"""

from __future__ import annotations

import torch
from torch import nn

from fedmedseg.networks.attention import SwitchableAttention

GROUPS = 4
"""Of every group normalisation of the network."""


class Attention(SwitchableAttention):
    """O softmax(K(rows) Q(columns)^T) V(columns) over all positions of two maps of one size.

    Rows come from ``rows`` and columns from ``columns``; names are the published ones, in which the key of the rows
    asks and the query of the columns answers. No scale, one head, no position code.
    """

    def __init__(self, *, channels: int, inner: int, faithful_reshape: bool) -> None:
        super().__init__()
        self.inner = inner
        self.faithful_reshape = faithful_reshape
        self.key = nn.Conv3d(channels, inner, kernel_size=1)
        self.query = nn.Conv3d(channels, inner, kernel_size=1)
        self.value = nn.Conv3d(channels, inner, kernel_size=1)
        self.output = nn.Conv3d(inner, channels, kernel_size=1)

    def forward(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W), indexed by the positions of ``rows``."""
        shape = (len(rows), self.inner, *rows.shape[2:])
        asking, values = self.key(rows), self.value(columns)
        answering = self.query(columns).flatten(2).transpose(1, 2)
        if self.faithful_reshape:
            attended = self.attend(self._mixed(asking), answering, self._mixed(values))
            return self.output(attended.reshape(shape))
        attended = self.attend(asking.flatten(2).transpose(1, 2), answering, values.flatten(2).transpose(1, 2))
        return self.output(attended.transpose(1, 2).reshape(shape))

    def _mixed(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, N, inner) as published: the numbers of one item in memory order, cut into rows of ``inner``."""
        return maps.contiguous().reshape(len(maps), -1, self.inner)


class Relocalization(nn.Module):
    """Global and local bottleneck maps (B, C, D, H, W) to (B, 2C, D, H, W), with F local and G global:

        S = GN(F + self(F, F))      S' = GN(S + conv(S))
        R = GN(S' + cross(G, S'))   R' = GN(R + conv(R))      result [S', R']

    Rows of the cross attention are positions of the global map, columns and values are local. One group normalisation
    serves all four places, as published.
    """

    def __init__(self, *, channels: int, inner: int, faithful_reshape: bool) -> None:
        super().__init__()
        self.self_attention = Attention(channels=channels, inner=inner, faithful_reshape=faithful_reshape)
        self.self_convolution = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        self.cross_attention = Attention(channels=channels, inner=inner, faithful_reshape=faithful_reshape)
        self.cross_convolution = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, channels)

    def forward(self, global_features: torch.Tensor, local_features: torch.Tensor) -> torch.Tensor:
        """What the decoder starts from."""
        local = self.norm(local_features + self.self_attention(local_features, local_features))
        local = self.norm(local + self.self_convolution(local))
        relocated = self.norm(local + self.cross_attention(global_features, local))
        relocated = self.norm(relocated + self.cross_convolution(relocated))
        return torch.cat([local, relocated], dim=1)
