"""Whether equally numbered parts of two sites' stacks can show the same region: coarse figures of a site, compared.

Parts are shares of a stack (``data.partitions``). They correspond where stacks run the same way, which preprocessing
sees to by the affine (``geometry.canonical_orientation``), and where stacks cover about as much of the body. What a
site tells for that is a median over its volumes, rounded, and a share. With few volumes these are figures of few, and
withheld as all of them are (``privacy.min_count``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE, SLICES, DIRECTION = "stack/coverage_mm", "stack/slices", "stack/one_direction"
STACK_METRICS = (COVERAGE, SLICES, DIRECTION)
COVERAGE_STEP = 10.0
"""mm that a site's median coverage is rounded to."""
SHARE_STEP = 0.1
SAME_DIRECTION = math.cos(math.radians(45.0))
"""Cosine above which a volume's slices follow each other in the direction of the site's others."""
LEAST_SHARE = 0.8
"""Of a site's volumes that run one way; fewer are worth a warning."""


@dataclass(frozen=True)
class Stack:
    """One volume's slices, as preprocessing hands them on."""

    slices: int
    thickness: float
    """mm from one slice to the next."""
    normal: tuple[float, float, float]
    """Direction (R, A, S) from the first slice to the last; of length 1."""

    @property
    def coverage(self) -> float:
        """mm that the stack covers, both outer slices included."""
        return self.slices * self.thickness


def stack_of(affine: np.ndarray, slices: int) -> Stack:
    """The stack of a volume (X, Y, ``slices``) whose voxels ``affine`` maps to mm (R, A, S)."""
    step = np.asarray(affine, dtype=np.float64)[:3, 2]
    thickness = float(np.linalg.norm(step))
    x, y, z = (step / thickness).tolist()
    return Stack(slices=slices, thickness=thickness, normal=(x, y, z))


def stack_figures(stacks: Sequence[Stack]) -> dict[str, float]:
    """What a site tells: its median coverage in tens of mm, its median number of slices, and the share of its volumes
    that run within 45 degrees of the mean direction, in tenths.
    """
    mean = np.mean([stack.normal for stack in stacks], axis=0)
    length = float(np.linalg.norm(mean))
    towards = mean / length if length > 0.0 else mean
    alike = sum(float(np.dot(stack.normal, towards)) >= SAME_DIRECTION for stack in stacks) / len(stacks)
    coverage = statistics.median(stack.coverage for stack in stacks)
    return {
        COVERAGE: COVERAGE_STEP * round(coverage / COVERAGE_STEP),
        SLICES: float(round(statistics.median(stack.slices for stack in stacks))),
        DIRECTION: round(SHARE_STEP * math.floor(alike / SHARE_STEP + 1e-9), 1),
    }


def mismatches(sites: Mapping[str, Mapping[str, float]], *, factor: float) -> list[str]:
    """In words, where parts cannot correspond between sites: from each site's figures, those it tells.

    Coverage, whose largest and smallest differ by more than ``factor``; the number of slices likewise; and sites whose
    own volumes do not run one way.
    """
    said = []
    for figure, words, unit in ((COVERAGE, "stacks cover", " mm"), (SLICES, "stacks have", " slices")):
        known = {site: figures[figure] for site, figures in sites.items() if figures.get(figure, 0.0) > 0.0}
        if len(known) < 2:
            continue
        least, most = min(sorted(known), key=known.__getitem__), max(sorted(known), key=known.__getitem__)
        if known[most] > factor * known[least]:
            said.append(
                f"parts may not correspond: {words} {known[least]:g}{unit} at {least} and {known[most]:g}{unit} at "
                f"{most} (medians), more than {factor:g} times as much"
            )
    for site in sorted(sites):
        share = sites[site].get(DIRECTION)
        if share is not None and share < LEAST_SHARE:
            said.append(f"parts may not correspond: only {share:.0%} of the volumes at {site} run one way")
    return said
