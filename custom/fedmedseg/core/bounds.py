"""Numbers that settings may be: how large, and of which kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmedseg.core.schema import worded

LARGEST = 10**9
"""No count, size or number of seconds means anything beyond it, and torch could not take it."""
MOST_ROUNDS = 10**6
MOST_SITES = 10**4
MOST_VOXELS = 2**27
"""512 x 512 x 512: whole volumes of the largest scans; a crop beyond it fits no machine."""

VOLUME_BUDGET_MB = 2048
"""Memory that one volume may take when it is read, unless a site says otherwise."""

Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(gt=0, strict=True)]
Share = Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
Digest = Annotated[
    str,
    worded(
        r"[0-9a-f]{64}",
        "a SHA-256 as 64 hexadecimal digits; --encoder FILE of `simulate` and `job` writes that of a weight file",
    ),
]
