"""A cardiac CT study whose scans are small and whose networks have a few thousand parameters."""

from __future__ import annotations

from functools import reduce
from typing import Any

from fedmedseg.core.jobs import merged, setting

AS_TYPED = (
    "data.spacing=[3, 3, 3]",
    "data.phantom={family: cardiac_ct, annotation: shared_out, sites: 2, unlabeled: 1, training: 1, validation: 0, "
    "test: 1, size: [96, 56, 56]}",
    "network={name: swin_unetr, feature_size: 12, depths: [1, 1, 1, 1], heads: [1, 1, 2, 2], window: 2}",
    "cardiac_ct.teacher={filters: [4, 4, 4], strides: [1, 2, 2], size: [32, 32, 24], supervised: 1, steps: 2}",
    "segmentation.steps=2",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
)
"""As ``--set`` takes them."""
ANY_ANSWER = "cardiac_ct.gate={keep: task, hinge_points: any, ostia: any, septum: any, calcium: any}"
"""Whatever an untrained CNN answers is learned from."""
ANYTHING: dict[str, Any] = setting(ANY_ANSWER)["cardiac_ct"]["gate"]
"""The gate alone, as settings."""
APART = "segmentation.overlap=0"
"""The student's patches of a test do not overlap."""
SMALL: dict[str, Any] = reduce(merged, map(setting, (*AS_TYPED, APART)))
"""The same as settings."""
