"""What scanners do to anatomy: blur, contrast curve, coil shading or beam hardening, noise."""

from __future__ import annotations

import numpy as np

from fedmedseg.data.phantoms.geometry import Array, smooth_noise
from fedmedseg.data.phantoms.style import SiteStyle


def tissue_values(rng: np.random.Generator, style: SiteStyle) -> dict[str, float]:
    """This patient's mean value per tissue: relative units (never negative) for MR, HU for CT."""
    drawn = {name: mean + float(rng.normal(0, style.spread)) for name, mean in style.tissue.items()}
    return drawn if min(style.tissue.values()) < 0 else {name: max(0.0, value) for name, value in drawn.items()}


def acquire_mr(volume: Array, rng: np.random.Generator, style: SiteStyle) -> Array:
    """Point spread, contrast curve, coil sensitivity, Rician noise and gain on a volume (X, Y, Z) in relative units."""
    from scipy.ndimage import gaussian_filter

    volume = gaussian_filter(volume, [style.blur / style.spacing[0], style.blur / style.spacing[1], 0])
    volume = np.clip(volume, 0, None) ** style.gamma
    sensitivity = np.exp(style.bias * smooth_noise(rng, volume.shape, (3, 3, 2)))
    volume = gaussian_filter(sensitivity, [6, 6, 1]) * volume
    sigma = style.noise * rng.uniform(0.8, 1.25)
    real = volume + rng.normal(0, sigma, size=volume.shape)
    imaginary = rng.normal(0, sigma, size=volume.shape)
    return (np.hypot(real, imaginary) * style.gain * rng.uniform(0.85, 1.2)).astype(np.float32)


def acquire_ct(volume: Array, rng: np.random.Generator, style: SiteStyle) -> Array:
    """Reconstruction kernel, low-frequency HU error and noise on a volume (X, Y, Z) in HU.

    The noise passes a kernel too, which gives it the grain of CT; its spread after that is ``style.noise``.
    """
    from scipy.ndimage import gaussian_filter

    volume = gaussian_filter(volume, [style.blur / step for step in style.spacing])
    shading = 100 * style.bias * smooth_noise(rng, volume.shape, (3, 3, 3))
    grain = gaussian_filter(rng.normal(size=volume.shape), 0.6)
    sigma = style.noise * rng.uniform(0.8, 1.25)
    inside = volume > -900  # air stays air
    noisy = volume + inside * shading + grain * (sigma / grain.std())
    return np.clip(noisy, -1024, 3071).astype(np.float32)
