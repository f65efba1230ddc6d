"""MONAI's ViT encoder read at its last blocks, with patch embeddings masked or left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fedmedseg.networks.units import cut_units

if TYPE_CHECKING:
    from monai.networks.nets.vit import ViT

STRIDE = 16
"""Voxels per token and axis in MONAI's UNETR."""
DEPTH = 12
"""Blocks of the ViT in MONAI's UNETR."""


def unreached(encoder: ViT) -> list[str]:
    """Submodules that no token passes: MONAI's blocks carry a cross-attention norm even where they have none."""
    return [name for name, _ in encoder.named_modules() if name.endswith(".norm_cross_attn")]


def last_stage(encoder: ViT) -> str:
    """The last block: a ViT has no stages."""
    return f"blocks.{len(encoder.blocks) - 1}"


def attention_type() -> type[nn.Module]:
    """The module that holds a block's self-attention."""
    from monai.networks.blocks.selfattention import SABlock

    return SABlock


def token_width(encoder: ViT) -> int:
    """Channels of a token."""
    return int(encoder.norm.normalized_shape[0])


def mask_width(encoder: ViT) -> int:
    """Channels of a patch embedding, which is what a mask token replaces."""
    return token_width(encoder)


def block_tokens(
    encoder: ViT,
    images: torch.Tensor,
    *,
    top: int,
    mask: torch.Tensor | None = None,
    mask_token: torch.Tensor | None = None,
    visible: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Outputs of the last ``top`` blocks, as they are before the encoder's final norm.

    ``images`` is (B, 1, *crop); ``mask`` (B, *crop / 16), true where hidden; ``mask_token`` (hidden_size,) replaces
    hidden patch embeddings and keeps their position embedding. ``visible`` (B, V) instead names the tokens that go
    through the blocks at all (He et al. 2022). Each output is (B, tokens, hidden_size), tokens being V then.
    """
    embedding = encoder.patch_embedding
    if visible is not None:
        x = _embed_visible(embedding, images, visible)
    else:
        x = embedding.patch_embeddings(images).flatten(2).transpose(-1, -2)
        if mask is not None and mask_token is not None:
            hidden = mask.flatten(1).unsqueeze(-1).to(x.dtype)
            x = x * (1 - hidden) + mask_token.to(x.dtype) * hidden
        x = x + embedding.position_embeddings
    x = embedding.dropout(x)
    outputs = []
    for block in encoder.blocks:
        x = block(x)
        outputs.append(x)
    return outputs[-top:]


def output(encoder: ViT, tokens: torch.Tensor) -> torch.Tensor:
    """What the encoder hands on from its last block: normalised, as UNETR's decoder reads it."""
    return encoder.norm(tokens)


def _embed_visible(embedding: Any, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Embeddings of the units ``visible`` (B, V) and their positions, (B, V, hidden_size); the others are not computed.

    A convolution whose stride is its kernel is a linear layer on units, here several times faster.
    """
    index = visible.unsqueeze(-1)
    units = cut_units(images, unit=STRIDE).take_along_dim(index, dim=1)
    patches = embedding.patch_embeddings
    x = functional.linear(units, patches.weight.flatten(1), patches.bias)
    return x + embedding.position_embeddings.take_along_dim(index, dim=1)
