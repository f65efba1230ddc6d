"""FCL's loss [0]: every query is drawn to features of its own part, and from the features sampled from the bank.

[0] Wu, Zeng, Wang, Shi, Hu, "Federated contrastive learning for volumetric medical image segmentation", MICCAI 2021
(arXiv 2204.10983). With the sampled bank Q', temperature t and a set of positives P:

    L(q, P) = -1/|P| sum_{p in P} log [ exp(q.p / t) / ( exp(q.p / t) + sum_{n in Q'} exp(q.n / t) ) ]

L_local takes P from the site's own batch; L_remote (global structural matching) takes the entries of Q' that are of the
query's part, own and received. The loss is the mean over queries of L_local + L_remote.

As it is written, Q' in the denominator holds entries of the query's own part too: negatives in L_local, and counted
twice for a positive of L_remote. ``paper`` computes that; ``exclude_same_partition`` leaves them out (ours). The
query's own slice is dropped from Q' in both (ours). No gradient goes to keys or bank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SLICES = 2**20
"""A slice's number is its volume's times this, plus its place in the stack."""
NEVER = -1.0e30
"""Logarithm of a negative that is left out: exp of it is 0, and unlike infinity its gradient is a number."""


@dataclass(frozen=True)
class Rows:
    """Features (N, width) of length 1, the part of each (N,), and of which own slice it is (N,), -1 for others'."""

    vectors: torch.Tensor
    parts: torch.Tensor
    slices: torch.Tensor


def similarities(queries: torch.Tensor, others: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """q.p / t for all pairs, (B, N) from (B, width) and (N, width)."""
    return queries @ others.T / temperature


def allowed_negatives(queries: Rows, bank: Rows, *, denominator: str) -> torch.Tensor:
    """Which entries of the sampled bank stand in the denominator of which query, bool (B, K)."""
    other_slice = queries.slices[:, None] != bank.slices[None]
    if denominator == "paper":
        return other_slice
    return other_slice & (queries.parts[:, None] != bank.parts[None])


def background(similar: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """log sum exp of the allowed ones of ``similar`` (B, K), per query (B,); about ``NEVER`` where there are none."""
    if similar.shape[1] == 0:
        return similar.new_full((len(similar),), NEVER)
    return torch.logsumexp(similar.masked_fill(~allowed, NEVER), dim=1)


def attraction(similar: torch.Tensor, positive: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
    """L(q, P) per query (B,); ``similar`` (B, N) and ``positive`` bool (B, N), ``against`` (B,) from ``background``.

    0 for a query without positives.
    """
    terms = torch.logaddexp(similar, against[:, None]) - similar
    return (terms * positive).sum(dim=1) / positive.sum(dim=1).clamp_min(1)


def local_positives(queries: Rows, keys: Rows, *, which: str) -> torch.Tensor:
    """Which keys of the batch are positives of which query, bool (B, B); the slice's own second view always is.

    ``partition``: those of other volumes in the same part, too.
    """
    own = queries.slices[:, None] == keys.slices[None]
    if which == "view":
        return own
    other_volume = (queries.slices // SLICES)[:, None] != (keys.slices // SLICES)[None]
    return own | ((queries.parts[:, None] == keys.parts[None]) & other_volume)


def structural_positives(queries: Rows, bank: Rows) -> torch.Tensor:
    """Which entries of the sampled bank are of the query's part, and not of its own slice: bool (B, K)."""
    return (queries.parts[:, None] == bank.parts[None]) & (queries.slices[:, None] != bank.slices[None])


def contrastive_losses(
    queries: Rows, keys: Rows, bank: Rows, *, temperature: float, denominator: str, positives: str, structural: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_local and L_remote, each the mean over queries, a scalar; L_remote is 0 where ``structural`` is off."""
    to_bank = similarities(queries.vectors, bank.vectors, temperature=temperature)
    against = background(to_bank, allowed_negatives(queries, bank, denominator=denominator))
    to_keys = similarities(queries.vectors, keys.vectors, temperature=temperature)
    local = attraction(to_keys, local_positives(queries, keys, which=positives), against)
    if not structural:
        return local.mean(), local.new_zeros(())
    return local.mean(), attraction(to_bank, structural_positives(queries, bank), against).mean()
