"""Soft Dice where cases mark some organs only: background and what nobody looked for are one, organs never overlap.

Kanhere et al. 2023 train every site on a problem of its own with MONAI's soft Dice over softmax, background included,
without cross-entropy. Where one network predicts organs that a case does not mark, the marginal and the exclusion loss
of Shi et al. 2021 (Medical Image Analysis 70:101979) say what its truth still tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fedmedseg.core.errors import DataError
from fedmedseg.segmentation.loss import marginal_logits, marginal_target

EPSILON = 1e-5
Marks = Sequence[tuple[int, ...] | None]
"""Per item of a batch, the label numbers its case marks; None: all."""


def alike(marks: Marks, classes: int) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """The items of a batch by what they mark: (label numbers, indices of the items).

    Raises:
        DataError: an item marks no organ, or a number the network does not have.
    """
    every = tuple(range(1, classes))
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, labels in enumerate(marks):
        groups.setdefault(every if labels is None else tuple(sorted(set(labels))), []).append(item)
    for labels, items in groups.items():
        if not labels or not set(labels) <= set(every):
            raise DataError("annotated_labels", got=labels, expected=f"some of {every}")
        yield labels, items


class MarginalDice:
    """MONAI's DiceLoss over softmax, background included, mean over items and classes.

    What a case does not mark is folded into its background first, as ``segmentation.loss.marginal_logits`` does it;
    where all is marked this is the paper's loss.
    """

    def __init__(self) -> None:
        from monai.losses import DiceLoss

        self._dice = DiceLoss(to_onehot_y=True, softmax=True, smooth_nr=EPSILON, smooth_dr=EPSILON)

    def __call__(self, logits: torch.Tensor, target: torch.Tensor, marks: Marks) -> torch.Tensor:
        """``logits`` (B, C, ...), ``target`` (B, 1, ...) int64; items that mark alike form a group."""
        classes = logits.shape[1]
        total = logits.new_zeros(())
        for labels, items in alike(marks, classes):
            part = self._dice(marginal_logits(logits[items], labels), marginal_target(target[items], labels, classes))
            total = total + part * (len(items) / len(logits))
        return total


def exclusion_dice(logits: torch.Tensor, target: torch.Tensor, marks: Marks) -> torch.Tensor:
    """How much of what a case does not mark is predicted inside what it does; 0 where there is no overlap.

    Per item, with e the union of the marked organs' voxels and p the summed probability of the organs that are not
    marked: 2 sum(e p) / (sum(e) + sum(p) + epsilon), mean over the batch. An item that marks all counts as 0.
    Reconstruction: Shi et al.'s idea (organs do not overlap) in its Dice form; their body text was not available.
    """
    probabilities = torch.softmax(logits, dim=1)
    classes = logits.shape[1]
    total = logits.new_zeros(())
    for labels, items in alike(marks, classes):
        hidden = [channel for channel in range(1, classes) if channel not in labels]
        if not hidden:
            continue
        outside = probabilities[items][:, hidden].sum(dim=1).flatten(1)
        inside = torch.isin(target[items], torch.tensor(labels, device=target.device)).to(outside.dtype).flatten(1)
        overlap = 2.0 * (inside * outside).sum(dim=1) / (inside.sum(dim=1) + outside.sum(dim=1) + EPSILON)
        total = total + overlap.sum() / len(logits)
    return total
