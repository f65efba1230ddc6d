"""Small counts: a number of cases below a site's threshold, and figures that stand on so few, stay at the site."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence


def without_small(
    metrics: Mapping[str, float], *, examples: int | None, counting: Sequence[str], cases: str, least: int
) -> tuple[dict[str, float], int | None]:
    """The metrics and the number of examples that may leave.

    Args:
        metrics: the reply's figures.
        examples: cases the reply stands on, or None where that is withheld already.
        counting: fnmatch patterns of the metrics that count cases.
        cases: name of the metric that, where there is one, says how many cases the other figures are averages over.
        least: the smallest number that may be told. Zero is below it too: told apart, it would say of every number
            withheld that there is somebody.

    Returns:
        Where the reply stands on fewer than ``least`` cases, no figure at all: a mean over one patient is that
        patient's own. Otherwise the figures without the counts that are below.
    """
    behind = [number for number in (examples, metrics.get(cases)) if number is not None]
    told = examples if examples is not None and examples >= least else None
    if any(number < least for number in behind):
        return {}, told
    return {name: value for name, value in metrics.items() if not (matches(name, counting) and value < least)}, told


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether ``name`` is one of ``patterns`` (fnmatch, case matters)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
