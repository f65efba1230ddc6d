"""One step of the recursion that the server and every site do alike: the target network that a round starts with."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.fclopt.config import Section
from fedmedseg.fclopt.distance_prediction import corrected, empty_table, expected, gaps, guarded, scales
from fedmedseg.fclopt.network import to_wire
from fedmedseg.fclopt.target_prediction import Arrays, Formula, Tensors, narrowed, predict

PREDICTION = "prediction."
"""Beginning of the names of what a correction needs besides the networks."""
DISTANCES = f"{PREDICTION}distances"
"""``ptnu``: true distances of target and online network after the last round, one per tensor, or one; float64."""
ANCHORS = f"{PREDICTION}anchors"
"""``ptnu_dp``: the table of anchors (``distance_prediction``); float64."""


def open_loop(section: Section, *, target: Tensors, before: Tensors, after: Tensors) -> Arrays:
    """The prediction before any correction."""
    formula: Formula = "naive" if section.mode == "naive" else "closed_form"
    return predict(
        target,
        before,
        after,
        formula=formula,
        momentum=section.momentum,
        steps=section.local_steps,
    )


def chosen_scales(
    section: Section, predicted: Arrays, after: Tensors, correction: Mapping[str, torch.Tensor], *, number: int
) -> list[float]:
    """Scales of the correction after round ``number``; ``correction`` holds what the mode needs for it.

    A mode that corrects nothing has the scale 1.
    """
    if section.mode == "ptnu":
        return scales(correction[DISTANCES].tolist(), gaps(predicted, after, section.distance.grain))
    if section.mode == "ptnu_dp":
        found = expected(correction[ANCHORS], number, section.distance.ratio)
        return guarded(found, gaps(predicted, after, section.distance.grain))
    return [1.0]


def next_target(
    section: Section,
    *,
    target: Tensors,
    before: Tensors,
    after: Tensors,
    correction: Mapping[str, torch.Tensor],
    number: int,
) -> dict[str, torch.Tensor]:
    """The target network after round ``number``, the same bits wherever it is worked out.

    Args:
        section: the study's settings.
        target: the target network that the round started with; names of the online network's.
        before: the online network that it started with.
        after: the online network that the server returned.
        correction: what came from the server for it.
        number: the round that lies behind.
    """
    predicted = open_loop(section, target=target, before=before, after=after)
    chosen = chosen_scales(section, predicted, after, correction, number=number)
    return narrowed(corrected(predicted, after, chosen), target)


def initial_correction(section: Section, tensors: int) -> dict[str, torch.Tensor]:
    """What the correction of ``tensors`` tensors needs, before the first round."""
    columns = 1 if section.distance.grain == "global" else tensors
    if section.mode == "ptnu":
        return {DISTANCES: torch.zeros(columns, dtype=torch.float64)}
    if section.mode == "ptnu_dp":
        return {ANCHORS: empty_table(section.distance.ratio, columns)}
    return {}


def digest_of(target: Tensors) -> str:
    """SHA-256 of a target network's parameters, by which server and sites know that they hold the same."""
    return content_sha256(to_wire(target))
