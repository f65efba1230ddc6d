"""Prediction of a whole scan: the CNN in one pass over its middle, the transformer in overlapping patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from torch import nn

from fedmedseg.cardiac_ct.network import Student, teacher_features, teacher_outputs
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.data.tasks import TASKS
from fedmedseg.networks.compute import applied

PATCHES_PER_FORWARD = 4
Edges = tuple[int, int, int]


def box_of(shape: Sequence[int], size: Sequence[int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Where the middle of a volume of ``shape`` lies in it, and in a volume of ``size`` around the same centre.

    >>> box_of((6,), (4,)), box_of((4,), (7,))
    (((slice(1, 5, None),), (slice(0, 4, None),)), ((slice(0, 4, None),), (slice(1, 5, None),)))
    """
    ours, theirs = [], []
    for edge, wanted in zip(shape, size, strict=True):
        length = min(edge, wanted)
        ours.append(slice((edge - length) // 2, (edge - length) // 2 + length))
        theirs.append(slice((wanted - length) // 2, (wanted - length) // 2 + length))
    return tuple(ours), tuple(theirs)


def centred(volume: np.ndarray, size: Edges) -> np.ndarray:
    """The middle (..., *size) of a volume (..., X, Y, Z): cut where it is larger, with 0 around it where smaller."""
    ours, theirs = box_of(volume.shape[-3:], size)
    found = np.zeros((*volume.shape[:-3], *size), dtype=volume.dtype)
    found[..., *theirs] = volume[..., *ours]
    return found


def uncentred(probabilities: torch.Tensor, shape: Edges) -> torch.Tensor:
    """The inverse of ``centred`` for probabilities (C, *size); what the CNN did not see is background."""
    theirs, ours = box_of(probabilities.shape[1:], shape)
    found = probabilities.new_zeros((len(probabilities), *shape))
    found[0] = 1.0
    found[:, *ours] = probabilities[:, *theirs]
    return found


def activated(logits: torch.Tensor, task: str, landmarks: str) -> torch.Tensor:
    """Probabilities (B, C, ...) of a head: over classes, or of each point's heat map (its background is not read)."""
    if landmarks == "heatmaps" and TASKS[task].kind == "points":
        return torch.sigmoid(logits.float())
    return torch.softmax(logits.float(), dim=1)


Head = Callable[[torch.Tensor], torch.Tensor]
"""From a backbone's features to logits."""


def predict_whole(
    teacher: DynUNet,
    inputs: np.ndarray,
    *,
    task: str,
    size: Edges,
    landmarks: str,
    device: str,
    choice: ComputeChoice,
    last: Head | None = None,
) -> torch.Tensor:
    """Probabilities (C, X, Y, Z), float32 on the CPU, of inputs (channels, X, Y, Z): one pass, no patches.

    ``last`` is read in place of the CNN's own output block.
    """
    images = choice.on_device(torch.from_numpy(centred(inputs, size))[None], device)
    with _evaluating(teacher, choice), torch.inference_mode(), choice.autocast(device):
        logits = teacher_outputs(teacher, images)[0] if last is None else last(teacher_features(teacher, images))
        found = activated(logits, task, landmarks)[0].cpu()
    x, y, z = inputs.shape[1:]
    return uncentred(found, (x, y, z))


def predict_patches(
    student: Student,
    inputs: np.ndarray,
    *,
    heads: Mapping[str, Head],
    crop: Edges,
    overlap: float,
    landmarks: str,
    device: str,
    choice: ComputeChoice,
) -> dict[str, torch.Tensor]:
    """Probabilities (C, X, Y, Z) of each of ``heads``, from one pass of the transformer over every patch.

    Patches overlap by ``overlap`` (0..1) and are blended with Gaussian weights. Only patches go to ``device``.
    """
    # one tensor for all heads: each patch goes through the transformer once
    widths = {task: TASKS[task].classes for task in heads}

    def every_head(patches: torch.Tensor) -> torch.Tensor:
        with choice.autocast(device):
            features = student.features(choice.on_device(patches, device))
            return torch.cat([activated(heads[task](features), task, landmarks) for task in widths], dim=1)

    with _evaluating(student, choice), torch.inference_mode():
        found = sliding_window_inference(
            torch.from_numpy(np.array(inputs))[None],
            roi_size=crop,
            sw_batch_size=PATCHES_PER_FORWARD,
            predictor=every_head,
            overlap=overlap,
            mode="gaussian",
            sw_device=torch.device(device),
            device=torch.device("cpu"),
        )
    assert isinstance(found, torch.Tensor)
    parts = torch.split(found[0], list(widths.values()))
    return {task: part.contiguous().clone() for task, part in zip(widths, parts, strict=True)}


class _evaluating:
    """A network in evaluation mode and computed as ``choice`` says, for a while."""

    def __init__(self, network: nn.Module, choice: ComputeChoice) -> None:
        self._network, self._applied = network, applied(network, choice)
        self._was_training = network.training

    def __enter__(self) -> None:
        self._network.eval()
        self._applied.__enter__()

    def __exit__(self, *error: object) -> None:
        self._applied.__exit__(None, None, None)
        self._network.train(self._was_training)
