"""How far the target network lies from the online one: the correction of its prediction, and that distance predicted.

Not differential privacy, although the paper abbreviates it so. Per tensor, with xi the prediction of
``target_prediction`` and theta the online network after the round,

    corrected = theta + s (xi - theta)        s = D / |xi - theta|, clipped to [0.5, 2]

D is the true distance, which the server knows where it was sent the targets (an anchor). Between anchors the ratio
rho = D / |xi - theta| is predicted from the anchors before, not D itself, which shrinks with the learning rate. Where
|xi - theta| is below 1e-8 the prediction stays as it is. All of this is our reconstruction of an idea that the paper's
abstract names.

Sums of squares are added up one after the other, not in blocks, whose size depends on the processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from fedmedseg.fclopt.target_prediction import Arrays, Tensors, wide

Grain = Literal["tensor", "global"]
Rule = Literal["last", "ema", "linear"]
LEAST = 1e-8
"""A distance below it is none: nothing is divided by it."""
LOWEST, HIGHEST = 0.5, 2.0
"""Bounds of the correction's scale."""
KEPT = 3
"""Anchors that a straight line is fitted to."""
NONE = -1.0
"""In the table of anchors: no round."""


def gaps(predicted: Mapping[str, np.ndarray], online: Tensors, grain: Grain) -> list[float]:
    """|xi - theta| of every tensor in sorted order, or of all of them together."""
    squares = [_sum_of_squares(predicted[name] - wide(online[name])) for name in sorted(predicted)]
    if grain == "global":
        squares = [_in_order(np.array(squares))]
    return [float(np.sqrt(square)) for square in squares]


def scales(distances: list[float], measured: list[float]) -> list[float]:
    """s for each distance D and |xi - theta|: clipped, and 1 where there is nothing to divide by."""
    return [clipped(ratio) for ratio in ratios(distances, measured)]


def guarded(chosen: list[float], measured: list[float]) -> list[float]:
    """The scales ``chosen``, and 1 where |xi - theta| is none."""
    return [1.0 if gap < LEAST else scale for scale, gap in zip(chosen, measured, strict=True)]


def clipped(scale: float) -> float:
    """Between ``LOWEST`` and ``HIGHEST``."""
    return min(HIGHEST, max(LOWEST, scale))


def corrected(predicted: Mapping[str, np.ndarray], online: Tensors, chosen: list[float]) -> Arrays:
    """theta + s (xi - theta); exactly xi where s is 1. ``chosen`` has one scale for each tensor, or one for all."""
    names = sorted(predicted)
    each = chosen if len(chosen) == len(names) else chosen * len(names)
    found: Arrays = {}
    for name, scale in zip(names, each, strict=True):
        if scale == 1.0:
            found[name] = predicted[name]
            continue
        theta = wide(online[name])
        found[name] = theta + (predicted[name] - theta) * scale
    return found


def ratios(distances: list[float], measured: list[float]) -> list[float]:
    """rho for each distance and |xi - theta|, not clipped; 1 where there is nothing to divide by."""
    return [1.0 if gap < LEAST else distance / gap for distance, gap in zip(distances, measured, strict=True)]


def is_anchor(number: int, *, warm_up: int, every: int) -> bool:
    """Whether sites return their targets in round ``number``: the first rounds, and then every so often."""
    return number < warm_up or number % every == 0


def rows(rule: Rule) -> int:
    """Rows of the table of anchors that ``rule`` predicts from."""
    return {"last": 1, "ema": 2, "linear": KEPT}[rule]


def empty_table(rule: Rule, columns: int) -> torch.Tensor:
    """The table of anchors before the first one: (rows, 1 + columns) float64, each row a round and its ratios."""
    table = torch.ones(rows(rule), 1 + columns, dtype=torch.float64)
    table[:, 0] = NONE
    return table


def noted(table: torch.Tensor, number: int, found: list[float], *, rule: Rule, momentum: float) -> torch.Tensor:
    """The table after the anchor of round ``number``.

    Row 0 is the newest anchor. ``ema`` keeps the moving average of all of them, with ``momentum``, in row 1;
    ``linear`` the two anchors before.
    """
    row = torch.tensor([float(number), *found], dtype=torch.float64)
    if rule == "last":
        return row[None]
    if rule == "linear":
        return torch.cat([row[None], table[: KEPT - 1]])
    average = row.clone()
    if table[1, 0] != NONE:
        before = table[1].tolist()
        mixed = [momentum * old + (1.0 - momentum) * new for old, new in zip(before[1:], found, strict=True)]
        average = torch.tensor([float(number), *mixed], dtype=torch.float64)
    return torch.stack([row, average])


def expected(table: torch.Tensor, number: int, rule: Rule) -> list[float]:
    """rho after round ``number``, clipped: in an anchor's round its own, else what ``rule`` makes of the anchors.

    1, no correction, before any anchor.
    """
    known = [row for row in table.tolist() if row[0] != NONE]
    if not known:
        return [1.0] * (table.shape[1] - 1)
    newest = known[0]
    if newest[0] == number or rule == "last":
        return [clipped(value) for value in newest[1:]]
    if rule == "ema":
        return [clipped(value) for value in known[1][1:]]
    return [clipped(_line([(row[0], row[1 + column]) for row in known], number)) for column in range(len(newest) - 1)]


def _line(points: list[tuple[float, float]], place: float) -> float:
    """Value at ``place`` of the least-squares line through ``points``; through one point a level line."""
    count = len(points)
    centre = sum(x for x, _ in points) / count
    level = sum(y for _, y in points) / count
    spread = sum((x - centre) * (x - centre) for x, _ in points)
    if spread == 0.0:
        return level
    slope = sum((x - centre) * (y - level) for x, y in points) / spread
    return level + slope * (place - centre)


def _sum_of_squares(array: np.ndarray) -> float:
    return _in_order(np.square(array.reshape(-1)))


def _in_order(values: np.ndarray) -> float:
    """Their sum, added up one after the other."""
    return float(np.add.accumulate(values)[-1]) if values.size else 0.0
