"""A light transformer that predicts at hidden places from what the encoder made of the visible ones."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn

from fedmedseg.fedata.masking import Places, pick

MLP_RATIO = 4


def decoder_width(token_width: int, *, heads: int, spatial_dims: int) -> int:
    """Half the width of a token, rounded up to what heads and positions divide."""
    step = width_step(heads=heads, spatial_dims=spatial_dims)
    return step * math.ceil(token_width / 2 / step)


def width_step(*, heads: int, spatial_dims: int) -> int:
    """Widths are multiples of this: equal heads, and a sine and a cosine per axis."""
    return math.lcm(heads, 2 * spatial_dims)


class Decoder(nn.Module):
    """Encoder tokens to predictions at the hidden places: (B, tokens, width_in) to (B, hidden, width_out).

    With ``fills`` the input holds visible tokens only, and one learned mask token stands at every hidden place, as in
    MAE (He et al. 2022); without, it holds all tokens of an encoder that saw mask tokens itself. Every place gets
    MONAI's fixed sine-cosine position, so that nothing but the weights is shared. ``grid`` is the tokens' grid.
    """

    positions: torch.Tensor

    def __init__(
        self,
        *,
        width_in: int,
        width_out: int,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, ...],
        fills: bool,
    ) -> None:
        from monai.networks.blocks.transformerblock import TransformerBlock

        super().__init__()
        self.fills = fills
        self.embed = nn.Linear(width_in, width)
        if fills:
            self.mask_token = nn.Parameter(torch.empty(width))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", _positions(grid, width), persistent=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, MLP_RATIO * width, heads, use_flash_attention=True) for _ in range(depth)
        )
        for block in self.blocks:
            # the norm of a cross-attention that these blocks do not have would never see a gradient
            block.norm_cross_attn = nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width_out)

    def forward(self, tokens: torch.Tensor, places: Places) -> torch.Tensor:
        """Predictions in the order of ``places.hidden``."""
        x = self.embed(tokens)
        if self.fills:
            index = places.visible.unsqueeze(-1).expand_as(x)
            everywhere = self.mask_token.to(x.dtype).expand(x.shape[0], self.positions.shape[1], -1)
            x = everywhere.scatter(1, index, x)
        x = x + self.positions.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(pick(x, places.hidden)))


def _positions(grid: tuple[int, ...], width: int) -> torch.Tensor:
    """(1, tokens, width), last axis of the grid fastest."""
    from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding

    with warnings.catch_warnings():
        # MONAI leaves torch.meshgrid's indexing to its default, which warns and is the one meant here
        warnings.simplefilter("ignore", UserWarning)
        return build_sincos_position_embedding(list(grid), width, len(grid)).detach()
