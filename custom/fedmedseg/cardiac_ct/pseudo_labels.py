"""Pseudo-labels on a site's disk: points and packed masks per scan, with the confidence of the CNNs that made them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedmedseg.cardiac_ct.answers import Found
from fedmedseg.core.state import SiteState

INDEX = "pseudo_labels"


@dataclass(frozen=True)
class ScanLabels:
    """What the teachers' answers to one scan came to."""

    kept: Mapping[str, Found]
    """Task to an answer that passed the gate."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Task to why its answer did not."""
    soft: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Task to float16 log-probabilities (C, X, Y, Z), where the study distils softly."""


def save_labels(state: SiteState, key: str, labels: ScanLabels, *, teachers: str) -> None:
    """Remember the labels of the scan called ``key`` by the CNNs whose tensors have the digest ``teachers``."""
    tree = {
        "teachers": teachers,
        "kept": {task: _plain(found) for task, found in labels.kept.items()},
        "refused": dict(labels.refused),
        "soft": dict(labels.soft),
    }
    state.save(_name(key), tree)


def load_labels(state: SiteState, key: str, *, teachers: str | None = None) -> ScanLabels | None:
    """What is remembered of a scan; None where nothing is, or only of other CNNs than ``teachers``."""
    tree = state.load(_name(key))
    if tree is None or (teachers is not None and tree["teachers"] != teachers):
        return None
    kept = {task: _found(content) for task, content in tree["kept"].items()}
    return ScanLabels(kept=kept, refused=tree["refused"], soft=tree["soft"])


def save_index(state: SiteState, kept: Mapping[str, Collection[str]], *, teachers: str) -> None:
    """Remember which tasks of which scan (by its key) can be learned from; the sign that every scan was labelled."""
    state.save(INDEX, {"teachers": teachers, "kept": {key: sorted(tasks) for key, tasks in kept.items()}})


def load_index(state: SiteState) -> dict[str, frozenset[str]] | None:
    """What ``save_index`` remembered, or None where this site has labelled nothing."""
    tree = state.load(INDEX)
    return None if tree is None else {key: frozenset(tasks) for key, tasks in tree["kept"].items()}


def _name(key: str) -> str:
    return f"pseudo_label_{key}"


def _plain(found: Found) -> dict[str, Any]:
    if found.points is not None:
        return {"points": torch.from_numpy(np.ascontiguousarray(found.points)), "confidence": found.confidence}
    assert found.mask is not None
    # a bit per voxel and class: a mask of one structure takes an eighth of a byte
    bits = [np.packbits(found.mask == number) for number in range(1, int(found.mask.max()) + 1)]
    packed = [torch.from_numpy(one) for one in bits]
    return {"bits": packed, "shape": list(found.mask.shape), "confidence": found.confidence}


def _found(content: Mapping[str, Any]) -> Found:
    if "points" in content:
        return Found(points=content["points"].numpy(), mask=None, confidence=content["confidence"])
    mask = np.zeros(content["shape"], dtype=np.uint8)
    for number, bits in enumerate(content["bits"], start=1):
        mask[np.unpackbits(bits.numpy(), count=mask.size).reshape(mask.shape).astype(bool)] = number
    return Found(points=None, mask=mask, confidence=content["confidence"])
