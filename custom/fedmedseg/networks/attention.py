"""Softmax attention of our own networks, in one kernel or written out, as a site's way of computing says."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SwitchableAttention(nn.Module):
    """Base of modules that attend; ``networks.compute`` sets ``use_flash_attention`` as it does on MONAI's."""

    def __init__(self) -> None:
        super().__init__()
        self.use_flash_attention = True

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """softmax(query key^T) value over tokens (B, N, C), without a scale; (B, N, C).

        The fused kernel never holds the N x N scores: 6,250 tokens (10 slices of 200 x 200) would make 156 MB a map.
        """
        if self.use_flash_attention:
            # the kernels that save memory want four axes and channels that lie side by side; for other tensors
            # torch computes the whole scores without a word
            one, other, third = (tokens.unsqueeze(1).contiguous() for tokens in (query, key, value))
            if one.is_meta:
                # without contents torch would count the scores that no device's kernel keeps
                kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
                counted: torch.Tensor = kernel(one, other, third, scale=1.0)[0]
                return counted.squeeze(1)
            return functional.scaled_dot_product_attention(query=one, key=other, value=third, scale=1.0).squeeze(1)
        return torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
