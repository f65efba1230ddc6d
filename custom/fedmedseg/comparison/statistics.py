"""What is said of differences and means: over patients, corrected for how often it is asked, with intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedseg.core.seeding import generator
from fedmedseg.reporting.paired import Paired, paired

RESAMPLES = 2000
LEVEL = 0.95
Array = NDArray[np.float64]
Interval = tuple[float, float]


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, A simple sequentially rejective multiple test procedure, 1979).

    In rising order the k-th of m (from 0) is multiplied by m - k, is never below the one before it, nor above 1. One
    that is nan was never asked: it stays so and counts nowhere.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    asked = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    corrected = [math.nan] * len(values)
    largest = 0.0
    for rank, (value, place) in enumerate(asked):
        largest = max(largest, min(1.0, (len(asked) - rank) * value))
        corrected[place] = largest
    return corrected


def interval(sites: Sequence[Array], *, seed: int = 1, resamples: int = RESAMPLES) -> Interval:
    """Bootstrap interval (95 %, percentiles) of ``mean_of_sites``: patients are drawn anew within each site.

    ``sites``: per site the figures of its patients (n, structures), nan where a structure does not count. Sites are
    not drawn anew: it is an interval for these hospitals, not for others. Efron, Bootstrap methods, 1979.
    """
    rng = generator(seed, "bootstrap")
    means = []
    for of_site in sites:
        drawn = rng.integers(0, len(of_site), size=(resamples, len(of_site)))
        means.append(_over_structures(of_site[drawn]))
    over_sites = _mean(np.stack(means), axis=0)
    low, high = np.nanpercentile(over_sites, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def mean_of_sites(sites: Sequence[Array]) -> float:
    """Mean over patients, then over structures, then over sites: every hospital counts alike."""
    return float(_mean(np.array([_over_structures(of_site[None])[0] for of_site in sites]), axis=0))


def patient_array(patients: Sequence[Mapping[str, Any]], structures: Sequence[str], figure: str) -> Array:
    """(n, structures) of one site's patients; nan where a structure does not count.

    As ``reporting.metrics`` has it: held by neither truth nor prediction, it does not count (nan, and in no mean); held
    by the prediction alone, it is a failure (Dice 0, the volume's diagonal), as it is held by the truth alone. One that
    nobody looked for in this patient (``annotated_labels``) does not count for any method.
    """
    rows = [[_number(one.get(name, {}).get(figure)) for name in structures] for one in patients]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(structures))


def over_seeds(runs: Sequence[Array]) -> Array:
    """Each patient's mean over the seeds that count a structure."""
    return _mean(np.stack(runs), axis=0)


def compare(first: Sequence[Array], second: Sequence[Array], *, seed: int = 1) -> tuple[Paired, Interval]:
    """Two methods patient by patient over all sites, each patient her mean over structures; with the interval of the
    mean difference, for which the differing patients are drawn anew.

    A method's mean is over the structures that count under it, so that one it predicts where there is nothing costs it
    as any failure does. A patient in whom nothing counts under one of them is left out: there is no pair.

    Raises:
        ValueError: another number of patients in one than in the other.
    """
    one, other = (np.concatenate([_mean(of_site, axis=1) for of_site in sites]) for sites in (first, second))
    found = paired(one.tolist(), other.tolist())
    if not found.n:
        return found, (math.nan, math.nan)
    differences = one - other
    return found, interval([differences[~np.isnan(differences)][:, None]], seed=seed)


def _over_structures(patients: Array) -> Array:
    """(..., n, structures) -> (...): mean over patients first, so that every structure weighs the same."""
    return _mean(_mean(patients, axis=-2), axis=-1)


def _mean(values: Array, *, axis: int) -> Array:
    with warnings.catch_warnings():
        # of nothing: nan is meant
        warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis), dtype=np.float64)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
