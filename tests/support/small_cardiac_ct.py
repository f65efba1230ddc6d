"""Settings of a cardiac CT study whose scans are small and whose networks have a few thousand parameters."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "data": {
        "spacing": [3.0, 3.0, 3.0],
        "phantom": {
            "annotation": "shared_out",
            "sites": 2,
            "training": 1,
            "unlabeled": 1,
            "validation": 0,
            "test": 1,
            "size": [96, 56, 56],
        },
    },
    "network": {"feature_size": 12, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": 2},
    "cardiac_ct": {
        "teacher": {"filters": [4, 4, 4], "strides": [1, 2, 2], "size": [32, 32, 24], "supervised": 1, "steps": 2},
    },
    "segmentation": {"steps": 2, "batch": 1, "overlap": 0.0, "test_untrained": False},
}
