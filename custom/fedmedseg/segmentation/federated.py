"""Federated fine-tuning's small rules: a round's share of the steps, and which round a site keeps."""

from __future__ import annotations


def steps_of_round(round: int, rounds: int, steps: int) -> tuple[int, int]:
    """(first step, number of steps) of one round; all rounds together do exactly ``steps``.

    >>> [steps_of_round(round, 3, 10) for round in range(3)]
    [(0, 3), (3, 3), (6, 4)]
    """
    first, end = round * steps // rounds, (round + 1) * steps // rounds
    return first, end - first


def better(dice: float | None, kept: float | None) -> bool:
    """Whether a round that validates with ``dice`` replaces the kept one; of equals the longer trained is kept.

    A site without validation cases (None) keeps the last round.
    """
    if dice is None:
        return kept is None
    return kept is None or dice >= kept
