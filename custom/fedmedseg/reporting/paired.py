"""Two methods on the same patients: the paired difference, and how likely one as large is by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paired:
    """``n`` patients with a figure under both methods; ``difference`` is the mean of first less second."""

    n: int
    difference: float
    p: float
    """Two-sided, Wilcoxon's signed-rank test; 1 where no patient differs, nan without patients."""


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two methods patient by patient; a patient without a figure under one of them (nan) is left out.

    Wilcoxon, Individual comparisons by ranking methods, 1945, as scipy computes it: nothing is assumed of the shape of
    the differences beyond their symmetry.

    Raises:
        ValueError: another number of patients in one than in the other.
    """
    from scipy.stats import wilcoxon

    differences = np.array([a - b for a, b in zip(first, second, strict=True) if not math.isnan(a - b)])
    if not differences.size:
        return Paired(n=0, difference=math.nan, p=math.nan)
    p = 1.0 if not differences.any() else float(wilcoxon(differences).pvalue)
    return Paired(n=int(differences.size), difference=float(differences.mean()), p=p)
