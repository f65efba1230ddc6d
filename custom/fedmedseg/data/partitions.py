"""Parts of a stack of slices: equally numbered parts of two hearts show the same region, if both cover all of it."""

from __future__ import annotations

from typing import Literal

import numpy as np

Rule = Literal["even", "rounded_width"]
"""``even``: part floor(S i / Z) of slice i of Z; ``rounded_width``: parts round(Z / S) slices wide, the last one as
wide as what is left, as in the public code of positional contrastive learning (Zeng et al. 2021)."""


def partition_of_slices(slices: int, parts: int, rule: Rule = "even") -> np.ndarray:
    """The part (0 to ``parts`` - 1) of every slice of a stack, int64 (slices,); some parts may be empty.

    ``rounded_width`` rounds a half up. It leaves the last part empty where the width was rounded up far enough (6
    slices in 4 parts), and has no width at all for a stack of fewer than half as many slices as parts.

    Raises:
        ValueError: no slice or no part, or ``rounded_width`` for so short a stack.
    """
    if slices < 1 or parts < 1:
        raise ValueError(f"at least one slice and one part, not {slices} and {parts}")
    index = np.arange(slices)
    if rule == "even":
        return index * parts // slices
    width = (2 * slices + parts) // (2 * parts)
    if width == 0:
        raise ValueError(f"{slices} slices are too few for {parts} parts under the rule rounded_width; use even")
    return np.minimum(index // width, parts - 1)
