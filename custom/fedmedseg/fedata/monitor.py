"""Watches the targets for collapse: without negatives, a constant token is a perfect and worthless answer."""

from __future__ import annotations

import torch


def token_spread(tokens: torch.Tensor) -> float:
    """Standard deviation over all tokens of a batch, averaged over channels, of (B, tokens, C) before any norm."""
    return float(tokens.detach().float().flatten(0, 1).std(dim=0).mean())


def collapsed(spread: float, reference: float, *, alarm: float) -> bool:
    """Whether the spread fell below ``alarm`` times its value at the site's first step."""
    return spread < alarm * reference
