"""Landmarks of an aortic root for the difficulty benchmark: a small network's heat maps, and rules without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from fedmedseg.core.seeding import generator, seed_everything
from fedmedseg.data.phantoms.style import LANDMARKS


class Case(Protocol):
    """What a case must have: image (X, Y, Z), points (landmarks, 3) in voxels, spacing (3,) in mm."""

    @property
    def image(self) -> np.ndarray: ...
    @property
    def points(self) -> np.ndarray: ...
    @property
    def spacing(self) -> np.ndarray: ...


LANDMARK_CROP = (64, 64, 48)
BRIGHT = (70.0, 80.0, 90.0, 95.0)
"""Percentiles of a scan above which the rule of brightness looks for the contrast-filled heart."""


def landmark_input(volume: Case, shift: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Central crop moved by ``shift`` voxels, halved: image (1, 32, 32, 24) and points (7, 3) in halved voxels."""
    edges = np.array(LANDMARK_CROP)
    corner = (np.array(volume.image.shape) - edges) // 2 + shift
    pad = 8
    padded = np.pad(volume.image, pad, mode="edge")
    window = tuple(slice(c + pad, c + pad + e) for c, e in zip(corner, edges, strict=True))
    image = torch.from_numpy(padded[window].copy())[None]
    points = (torch.from_numpy(volume.points - corner) - 0.5) / 2
    return torch.nn.functional.avg_pool3d(image, 2), points.float()


def expected_place(scores: torch.Tensor) -> torch.Tensor:
    """Mean position under the spatial softmax: (B, P, X, Y, Z) to (B, P, 3) in voxels."""
    share = scores.flatten(2).softmax(dim=2).reshape(scores.shape)
    axes = []
    for dim in range(3):
        others = tuple(2 + d for d in range(3) if d != dim)
        axes.append((share.sum(dim=others) * torch.arange(scores.shape[2 + dim])).sum(dim=2))
    return torch.stack(axes, dim=2)


def heat_maps(points: torch.Tensor, size: tuple[int, ...], sigma: float = 1.2) -> torch.Tensor:
    """Gaussians that sum to 1: (B, P, 3) in voxels to (B, P, X * Y * Z)."""
    mesh = torch.stack(torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij"), dim=-1).reshape(-1, 3)
    squared = ((points[:, :, None] - mesh) ** 2).sum(dim=3)
    return torch.softmax(-squared / (2 * sigma**2), dim=2)


def train_landmarks(volumes: Sequence[Case], *, steps: int, seed: int = 1, rate: float = 3e-3) -> torch.nn.Module:
    """Heat-map regression at half resolution with a small MONAI U-Net: cross-entropy and distance."""
    from monai.networks.nets import UNet

    seed_everything(seed)
    rng = generator(seed, "phantom difficulty", "landmarks")
    model = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(LANDMARKS),
        channels=(16, 32, 64, 96),
        strides=(2, 2, 2),
        num_res_units=1,
        norm="instance",
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        chosen = rng.integers(len(volumes), size=4)
        pairs = [landmark_input(volumes[i], rng.integers(-4, 5, size=3)) for i in chosen]
        image, points = (torch.stack(part) for part in zip(*pairs, strict=True))
        scores = model(image * float(rng.uniform(0.9, 1.1)))
        target = heat_maps(points, tuple(scores.shape[2:]))
        entropy = -(target * scores.flatten(2).log_softmax(dim=2)).sum(dim=2).mean()
        loss = entropy + 0.3 * (expected_place(scores) - points).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def mean_place(training: Sequence[Case], test: Sequence[Case]) -> dict[str, float]:
    """Errors of a rule that looks at no image: every point where it lies on average, in mm from the scan's middle."""
    return _rule(training, test, _middle)


def bright_place(training: Sequence[Case], test: Sequence[Case]) -> dict[str, float]:
    """Errors of a threshold: every point as far as on average from the middle of the largest bright component.

    Of a few percentiles that which is best on the training volumes themselves.
    """

    def error(percentile: float) -> float:
        return _rule(training, training, lambda case: _bright(case, percentile))["mean"]

    best = min(BRIGHT, key=error)
    return _rule(training, test, lambda case: _bright(case, best))


def _rule(training: Sequence[Case], test: Sequence[Case], anchor: Callable[[Case], np.ndarray]) -> dict[str, float]:
    """Mean error in mm per landmark, and over all, of points at their mean offset in training from ``anchor``."""
    offset = np.mean([(case.points - anchor(case)) * case.spacing for case in training], axis=0)
    errors = [np.linalg.norm((case.points - anchor(case)) * case.spacing - offset, axis=1) for case in test]
    return _named(np.mean(errors, axis=0))


def _middle(case: Case) -> np.ndarray:
    return (np.array(case.image.shape) - 1) / 2


def _bright(case: Case, percentile: float) -> np.ndarray:
    """Centre of mass of the largest component above a percentile of the scan, in voxels."""
    from scipy.ndimage import center_of_mass, label

    parts, count = label(case.image > np.percentile(case.image, percentile))
    if not count:
        return _middle(case)
    return np.array(center_of_mass(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))))


def _named(errors: np.ndarray) -> dict[str, float]:
    return {name: round(float(e), 2) for name, e in zip(LANDMARKS, errors, strict=True)} | {
        "mean": round(float(errors.mean()), 2)
    }


@torch.no_grad()
def landmark_errors(model: torch.nn.Module, volumes: Sequence[Case]) -> dict[str, float]:
    """Mean distance in mm per landmark and over all."""
    errors = []
    for volume in volumes:
        image, points = landmark_input(volume, np.zeros(3, dtype=int))
        offset = (expected_place(model(image[None]))[0] - points).numpy() * 2 * volume.spacing
        errors.append(np.linalg.norm(offset, axis=1))
    return _named(np.mean(errors, axis=0))
