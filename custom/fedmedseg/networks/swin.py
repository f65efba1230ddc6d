"""MONAI's Swin encoder read up to the last blocks before its final patch merging, with optional masking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from monai.networks.nets.swin_unetr import SwinTransformer

STRIDE = 16
"""Voxels per distilled token and axis: patches of 2, halved by three mergings."""


def unreached(encoder: SwinTransformer) -> list[str]:
    """Submodules that the distilled tokens do not pass: the merging after the last stage."""
    return ["layers4.0.downsample"]


def last_stage(encoder: SwinTransformer) -> str:
    """The submodule whose blocks give the distilled tokens."""
    return "layers4.0"


def attention_type() -> type[nn.Module]:
    """The module that holds a block's self-attention."""
    from monai.networks.nets.swin_unetr import WindowAttention

    return WindowAttention


def token_width(encoder: SwinTransformer) -> int:
    """Channels of a distilled token: 8 times the feature size."""
    return int(encoder.embed_dim) * 8


def mask_width(encoder: SwinTransformer) -> int:
    """Channels of a patch embedding, which is what a mask token replaces."""
    return int(encoder.embed_dim)


def block_tokens(
    encoder: SwinTransformer,
    images: torch.Tensor,
    *,
    top: int,
    mask: torch.Tensor | None = None,
    mask_token: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Outputs of the last ``top`` blocks of the last stage, at stride 16 and before its merging.

    ``images`` is (B, 1, *crop); ``mask`` (B, *crop / 16), true where hidden; ``mask_token`` (feature_size,) replaces
    every hidden patch embedding, before position dropout. Each output is (B, tokens, 8 * feature_size).

    MONAI's ``hidden_states[3]`` holds as many tokens but comes out of ``layers3``: learning from it would leave
    ``layers4`` untouched.
    """
    x = encoder.patch_embed(images)
    if mask is not None and mask_token is not None:
        hidden = expand(mask, x.shape[2:]).unsqueeze(1).to(x.dtype)
        token = mask_token.to(x.dtype).reshape(1, -1, *([1] * (x.ndim - 2)))
        x = x * (1 - hidden) + token * hidden
    x = encoder.pos_drop(x)
    for layer in (encoder.layers1[0], encoder.layers2[0], encoder.layers3[0]):
        x = layer(x.contiguous())
    return _last_stage(encoder.layers4[0], x.contiguous())[-top:]


def output(encoder: SwinTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """What the encoder hands on from its last block: the tokens as they are."""
    return tokens


def expand(mask: torch.Tensor, grid: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """A mask (B, *coarse) repeated onto a finer ``grid`` that it divides: (B, *grid)."""
    for axis, edge in enumerate(grid, start=1):
        mask = mask.repeat_interleave(edge // mask.shape[axis], dim=axis)
    return mask


def _last_stage(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Every block of a MONAI ``BasicLayer`` on (B, C, *grid), each output as (B, tokens, C); no merging."""
    from monai.networks.nets.swin_unetr import compute_mask, get_window_size

    grid = tuple(x.shape[2:])
    window, shift = get_window_size(grid, layer.window_size, layer.shift_size)
    padded = [-(-edge // size) * size for edge, size in zip(grid, window, strict=True)]
    attention_mask = compute_mask(padded, window, shift, x.device)
    x = x.movedim(1, -1)
    outputs = []
    for block in layer.blocks:
        x = block(x, attention_mask)
        outputs.append(x.flatten(1, -2))
    return outputs
