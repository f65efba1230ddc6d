"""Noise on features before they leave a site: coarser features, and no accounted guarantee."""

from __future__ import annotations

import torch

from fedmedseg.privacy.clipping import secure_normal


def noisy(vectors: torch.Tensor, *, sigma: float, renormalise: bool) -> torch.Tensor:
    """Features (N, width), cut to a length of 1 at most, plus Gaussian noise of ``sigma`` on every number; float32.

    The noise comes from the operating system, never from the study's seed: the server knows that, and could take the
    noise off again. So a run with noise does not repeat. ``renormalise`` brings the sums back to length 1.
    """
    if sigma == 0.0:
        return vectors
    lengths = torch.linalg.vector_norm(vectors.double(), dim=1, keepdim=True)
    clipped = vectors.double() / lengths.clamp_min(1.0)
    changed = clipped + sigma * torch.from_numpy(secure_normal(vectors.numel())).reshape(vectors.shape)
    if renormalise:
        changed = torch.nn.functional.normalize(changed, dim=1)
    return changed.float()
