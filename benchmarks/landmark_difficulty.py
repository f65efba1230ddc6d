"""Landmarks of an aortic root by heat maps at half resolution: the small network of the difficulty benchmark."""

from __future__ import annotations

from collections.abc import Sequence
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


@torch.no_grad()
def landmark_errors(model: torch.nn.Module, volumes: Sequence[Case]) -> dict[str, float]:
    """Mean distance in mm per landmark and over all."""
    errors = []
    for volume in volumes:
        image, points = landmark_input(volume, np.zeros(3, dtype=int))
        offset = (expected_place(model(image[None]))[0] - points).numpy() * 2 * volume.spacing
        errors.append(np.linalg.norm(offset, axis=1))
    per = np.mean(errors, axis=0)
    return {name: round(float(e), 2) for name, e in zip(LANDMARKS, per, strict=True)} | {
        "mean": round(float(per.mean()), 2)
    }
