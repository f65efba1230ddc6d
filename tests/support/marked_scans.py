"""Scans of a few voxels with a septum and a calcification, for whole stages of cardiac CT without files."""

from __future__ import annotations

import numpy as np
import torch

from fedmedseg.cardiac_ct.answers import Found, log_probabilities
from fedmedseg.cardiac_ct.pseudo_labels import ScanLabels
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.learner import Reply

SHAPE = (96, 32, 32)
CNN = {"filters": [4, 4, 4], "strides": [1, 2, 2], "size": [12, 12, 8], "supervised": 1, "steps": 2}
"""``cardiac_ct.teacher``."""
SEPTUM = np.array([[46.0, 16.0, 16.0], [52.0, 16.0, 16.0]])
"""Both ends of the membranous septum, in voxels."""
CALCIFIED = np.zeros(SHAPE, np.uint8)
CALCIFIED[46:50, 14:18, 14:18] = 1
ONE_STEP = {"segmentation": {"steps": 1}, "stages": {"distillation": {"rounds": 1}}}


def same(one: Reply, other: Reply) -> bool:
    return content_sha256(one.tensors) == content_sha256(other.tensors)


def gap(one: Reply, other: Reply) -> float:
    """The largest difference between two weights of the same name."""
    return max(float((tensor - other.tensors[name]).abs().max()) for name, tensor in one.tensors.items())


def answers(*, calc: float = 1.0, ms: float | None = 1.0, soft: bool = False) -> ScanLabels:
    """Calcification and septum of a scan, as sure as said; ``ms`` None: no septum; softened for the calcification."""
    kept = {"calc": Found(points=None, mask=CALCIFIED, confidence=calc)}
    if ms is not None:
        kept["ms"] = Found(points=SEPTUM, mask=None, confidence=ms)
    doubtful = torch.softmax(torch.stack([torch.zeros(SHAPE), torch.from_numpy(CALCIFIED).float() - 0.5]), 0)
    return ScanLabels(kept=kept, soft={"calc": log_probabilities(doubtful)} if soft else {})
