"""Dice plus cross-entropy, exact also where a case marks only some of the structures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmedseg.core.errors import DataError


def marginal_logits(logits: torch.Tensor, annotated: Sequence[int]) -> torch.Tensor:
    """Fold the structures a case does not mark into the background.

    (B, C, ...) -> (B, 1 + len(annotated), ...). A voxel the truth calls background may belong to any
    structure nobody drew there, so its probability is that of the background plus theirs:
    softmax over the result equals softmax over ``logits`` with those channels added up.
    Shi et al., Marginal loss and exclusion loss for partially supervised multi-organ segmentation,
    Medical Image Analysis 2021, DOI 10.1016/j.media.2021.101979.
    """
    hidden = [channel for channel in range(1, logits.shape[1]) if channel not in annotated]
    if not hidden:
        return logits
    background = torch.logsumexp(logits[:, [0, *hidden]], dim=1, keepdim=True)
    return torch.cat([background, logits[:, list(annotated)]], dim=1)


def marginal_target(target: torch.Tensor, annotated: Sequence[int], classes: int) -> torch.Tensor:
    """Number the annotated structures 1, 2, ... and everything else 0, to go with ``marginal_logits``."""
    table = torch.zeros(classes, dtype=torch.int64, device=target.device)
    table[list(annotated)] = torch.arange(1, len(annotated) + 1, device=target.device)
    return table[target]


class SegmentationLoss:
    """Soft Dice over structures plus cross-entropy over all classes, equally weighted (MONAI's DiceCELoss).

    The background is left out of the Dice part: it is nearly perfect anyway and would hide small
    structures; the cross-entropy keeps it. Dice is taken over the whole batch, because a 2D crop often
    holds none of a structure, where a Dice of its own has no useful gradient.
    """

    def __init__(self) -> None:
        from monai.losses import DiceCELoss

        self._dice_ce = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def __call__(
        self, logits: torch.Tensor, target: torch.Tensor, annotated: Sequence[tuple[int, ...] | None]
    ) -> torch.Tensor:
        """The loss of one batch.

        ``logits`` (B, C, ...), ``target`` (B, 1, ...) int64, ``annotated`` the marked label numbers of each
        item (None: all). Items that mark the same structures form one Dice batch; batches are weighted by
        their number of items.

        Raises:
            DataError: an item marks no structure, or a label number the network does not have.
        """
        classes = logits.shape[1]
        every = tuple(range(1, classes))
        groups: dict[tuple[int, ...], list[int]] = {}
        for item, labels in enumerate(annotated):
            groups.setdefault(every if labels is None else tuple(sorted(set(labels))), []).append(item)
        total = logits.new_zeros(())
        for labels, items in groups.items():
            if not labels or not set(labels) <= set(every):
                raise DataError("annotated_labels", got=labels, expected=f"some of {every}")
            chosen = slice(None) if len(items) == len(logits) else items
            part = self._dice_ce(
                marginal_logits(logits[chosen], labels), marginal_target(target[chosen], labels, classes)
            )
            total = total + part * (len(items) / len(logits))
        return total
