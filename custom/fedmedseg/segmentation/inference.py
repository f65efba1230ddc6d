"""Sliding-window prediction of a whole volume, the same in 2D (slice by slice) and 3D."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import DataError
from fedmedseg.networks.compute import applied, logits_of

WINDOWS_PER_FORWARD_2D = 8
WINDOWS_PER_FORWARD_3D = 2
"""Not 1: torch convolves a single small 3D item on a CPU by a slow path. One window of 64 x 64 x 6 took FedCRLD's
network of width 8 116 ms on one thread, two together 52 ms."""


def predict(
    model: nn.Module,
    image: np.ndarray | torch.Tensor,
    data: DataSection,
    overlap: float,
    device: str | torch.device,
    choice: ComputeChoice | None = None,
) -> torch.Tensor:
    """Class probabilities of one preprocessed volume.

    ``image`` is (1, X, Y, Z), normalised. A 2D network sees the Z slices as a batch. Windows of ``data.crop``
    (of all slices with ``data.whole_depth``) overlap by ``overlap`` (0..1) and are blended with Gaussian weights;
    probabilities, not logits, are blended, so they sum to 1 everywhere. A volume smaller than the crop is padded with
    its own lowest value (air) and cut back. Only windows go to ``device``: the result, float32 (classes, X, Y, Z), lies
    on the CPU. ``choice`` is how the network is computed (None: float32, as it is); it and the model's training mode
    are as before afterwards.

    Raises:
        DataError: ``image`` is not (1, X, Y, Z).
    """
    from monai.inferers import sliding_window_inference

    volume = torch.as_tensor(np.array(image) if isinstance(image, np.ndarray) else image, dtype=torch.float32).cpu()
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise DataError("image", got=tuple(volume.shape), expected="one channel and three axes, (1, X, Y, Z)")
    flat = data.spatial_dims == 2
    window = (*data.crop[:2], volume.shape[3]) if data.whole_depth else data.crop
    batch = volume.permute(3, 0, 1, 2) if flat else volume[None]
    way = choice or SHIPPED
    was_training = model.training
    model.eval()
    try:
        with applied(model, choice), torch.inference_mode():
            result = sliding_window_inference(
                batch.contiguous(),
                roi_size=window,
                sw_batch_size=windows_per_forward(data),
                predictor=lambda windows: torch.softmax(logits_of(model, windows, way, device), dim=1),
                overlap=overlap,
                mode="gaussian",
                cval=float(volume.min()),
                sw_device=torch.device(device),
                device=torch.device("cpu"),
            )
    finally:
        model.train(was_training)
    if not isinstance(result, torch.Tensor):
        raise TypeError(f"the network must return one tensor, not {type(result).__name__}")
    probabilities = result.permute(1, 2, 3, 0) if flat else result[0]
    return probabilities.contiguous().clone()


def predict_flipped(
    model: nn.Module,
    image: np.ndarray | torch.Tensor,
    data: DataSection,
    overlap: float,
    device: str | torch.device,
    choice: ComputeChoice | None = None,
) -> torch.Tensor:
    """As ``predict``, the mean over the volume and its mirror images along every axis that the network sees.

    Four passes in 2D, eight in 3D; each answer is mirrored back before the mean.
    """
    volume = torch.as_tensor(np.array(image) if isinstance(image, np.ndarray) else image, dtype=torch.float32)
    ways = mirrorings(data.spatial_dims)
    total: torch.Tensor | None = None
    for axes in ways:
        found = predict(model, volume.flip(axes), data, overlap, device, choice).flip(axes)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total / len(ways)


def mirrorings(dims: int) -> list[list[int]]:
    """Axes to mirror of (1, X, Y, Z) and (classes, X, Y, Z) alike, for each image over the first ``dims`` of X, Y, Z.

    >>> mirrorings(2)
    [[], [2], [1], [1, 2]]
    """
    ways = itertools.product((False, True), repeat=dims)
    return [[axis for axis, mirrored in enumerate(way, start=1) if mirrored] for way in ways]


def windows_per_forward(data: DataSection) -> int:
    """How many windows go through the network at once."""
    return WINDOWS_PER_FORWARD_2D if data.spatial_dims == 2 else WINDOWS_PER_FORWARD_3D


def label_map(probabilities: torch.Tensor) -> np.ndarray:
    """The most probable class of every voxel, of equals the first: (classes, X, Y, Z) -> uint8 (X, Y, Z)."""
    # the indices that argmax gives, which on a CPU goes through the first axis 15 times slower
    return probabilities.max(dim=0).indices.to(torch.uint8).cpu().numpy()
