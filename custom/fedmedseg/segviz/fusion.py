"""One result for the clinic: several sites' models, each with its own organs and window, fused into one label map.

The paper has no single model: trunk, and per site norms and head. Fusion is our addition; by uncertainty it follows
FUNAvg (Cardio-AI/FUNAvg), whose heads are weighted by mean p(1 - p) + mean p^2 - (mean p)^2 over passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.checks import read_voxels
from fedmedseg.data.datalist import Case
from fedmedseg.data.preprocessing import native_grid
from fedmedseg.reporting.metrics import CaseScore, score_structures
from fedmedseg.segmentation.models import InferenceModel
from fedmedseg.segmentation.prediction import native_probabilities

How = Literal["probability", "uncertainty"]
THRESHOLD = 0.5
LEAST = 1e-6
"""Keeps weights apart from 0 where every model is as unsure as it can be."""


def organ_probabilities(
    expert: InferenceModel, image: Path, *, device: str = "cpu", flips: bool = False
) -> dict[str, torch.Tensor]:
    """Each organ's probability under one model, on the file's own grid: float32 (X, Y, Z).

    The volume is prepared as the model's file says: its window, spacing and crop.
    ``flips``: the mean over mirror images.

    Raises:
        CaseRejected: an image that is no volume, or smaller than the crop.
    """
    native = native_probabilities(expert, image, device=device, flips=flips)
    return {organ: native[number] for number, organ in expert.data.labels.items()}


def uncertainty(samples: torch.Tensor) -> torch.Tensor:
    """Per voxel, of probabilities (passes, X, Y, Z): mean p(1 - p) + mean p^2 - (mean p)^2, between 0 and 1/4.

    The first part is what each pass is unsure of, the second how much passes differ. One pass has no second part.
    """
    mean = samples.mean(dim=0)
    return (samples * (1.0 - samples)).mean(dim=0) + (samples**2).mean(dim=0) - mean**2


def combined(maps: Sequence[torch.Tensor], how: How) -> torch.Tensor:
    """One organ's probability from those of several models, (X, Y, Z) each.

    ``probability``: their mean; ``uncertainty``: their mean weighted, voxel by voxel, by 1 - 4 times the uncertainty,
    which is 1 for a model that is sure and 0 for one that says 0.5. (X, Y, Z) is one pass of a model; several passes,
    (passes, X, Y, Z), count with their mean.
    """
    passes = [one if one.ndim == 4 else one[None] for one in maps]
    means = torch.stack([one.mean(dim=0) for one in passes])
    if how == "probability":
        return means.mean(dim=0)
    weights = torch.stack([1.0 - 4.0 * uncertainty(one) for one in passes]).clamp(min=0.0) + LEAST
    return (weights * means).sum(dim=0) / weights.sum(dim=0)


def fuse(
    experts: Sequence[Mapping[str, torch.Tensor]],
    labels: Mapping[int, str],
    *,
    how: How = "probability",
    threshold: float = THRESHOLD,
) -> np.ndarray:
    """A label map (X, Y, Z) uint8 of ``labels`` from each model's organ probabilities.

    A voxel belongs to the organ of the highest probability where that is above ``threshold``, else to the background;
    of equal organs to the one of the lower number.

    Raises:
        ConfigurationError: an organ of ``labels`` that no model predicts.
    """
    require_every_organ(experts, labels)
    maps = [combined([expert[organ] for expert in experts if organ in expert], how) for organ in labels.values()]
    probabilities = torch.stack(maps)
    best, which = probabilities.max(dim=0)
    numbers = torch.tensor(list(labels), dtype=torch.uint8)
    chosen: np.ndarray = torch.where(best > threshold, numbers[which], torch.zeros((), dtype=torch.uint8)).numpy()
    return chosen


def require_every_organ(experts: Sequence[Collection[str]], labels: Mapping[int, str]) -> None:
    """Refuse models (the organs that each predicts) which leave an organ of ``labels`` to nobody.

    Raises:
        ConfigurationError: naming the organ.
    """
    known = {organ for expert in experts for organ in expert}
    missing = [organ for organ in labels.values() if organ not in known]
    if missing:
        raise ConfigurationError(
            "fusion",
            got=f"no model of {', '.join(missing)}; there are models of {', '.join(sorted(known)) or 'nothing'}",
            expected="for each organ at least one model",
            remedy="add the models of sites that mark them, or ask for others with --structure",
        )


def fused_prediction(
    experts: Sequence[InferenceModel],
    image: Path,
    *,
    labels: Mapping[int, str],
    how: How = "probability",
    among: Mapping[int, str] | None = None,
    threshold: float = THRESHOLD,
    device: str = "cpu",
    flips: bool = False,
) -> np.ndarray:
    """The fused label map of one NIfTI volume on its own grid, of ``labels`` alone.

    ``among``: the study's labels (None: ``labels``). Those of them that a model knows compete for every voxel, so that
    an organ's answer does not depend on which others are asked for.

    Raises:
        ConfigurationError: an organ that no model predicts.
        CaseRejected: an image that cannot be used.
    """
    require_every_organ([expert.data.labels.values() for expert in experts], labels)
    known = {organ for expert in experts for organ in expert.data.labels.values()}
    competing = {number: organ for number, organ in {**(among or {}), **labels}.items() if organ in known}
    maps = [organ_probabilities(expert, image, device=device, flips=flips) for expert in experts]
    found = fuse(maps, competing, how=how, threshold=threshold)
    found[~np.isin(found, list(labels))] = 0
    return found


def score_fused(
    experts: Sequence[InferenceModel],
    cases: Sequence[Case],
    *,
    labels: Mapping[int, str],
    among: Mapping[int, str] | None = None,
    how: How = "probability",
    device: str = "cpu",
) -> list[CaseScore]:
    """Dice and HD95 in mm per organ and volume on the files' own grid, of a site that may have taken no part.

    Cases without a label are passed over.

    Raises:
        ConfigurationError: an organ that no model predicts.
        CaseRejected: an image that cannot be used.
    """
    scores = []
    for case in cases:
        if case.label is None:
            continue
        truth = np.rint(read_voxels(case.label)).astype(np.uint8)
        structures = score_structures(
            fused_prediction(experts, case.image, labels=labels, among=among, how=how, device=device),
            truth,
            spacing=native_grid(case.image).spacing,
            labels=labels,
            annotated=case.annotated_labels,
        )
        scores.append(CaseScore(key=case.key, patient=case.patient, structures=structures))
    return scores
