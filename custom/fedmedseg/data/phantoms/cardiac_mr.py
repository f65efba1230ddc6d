"""Short-axis cardiac MR phantoms: cine and late enhancement, from apex to base, in a thorax full of look-alikes."""

from __future__ import annotations

import numpy as np

from fedmedseg.data.phantoms.geometry import (
    Array,
    Phantom,
    cover,
    ellipsoid,
    grid,
    paint,
    smooth_noise,
    through_plane_mean,
)
from fedmedseg.data.phantoms.heart import (
    SUBSLICES,
    Heart,
    Scar,
    Surfaces,
    draw_heart,
    draw_scar,
    heart_label,
    label_scar,
    surfaces,
)
from fedmedseg.data.phantoms.scanner import acquire_mr, tissue_values
from fedmedseg.data.phantoms.style import SiteStyle
from fedmedseg.data.phantoms.thorax import paint_thorax


def paint_heart(
    image: Array, s: Surfaces, heart: Heart, rng: np.random.Generator, v: dict[str, float], soft: float
) -> None:
    """Epicardial fat, ventricles, trabeculae and papillary muscles, atria above the valve plane."""
    below = cover(s.above_base, 2.0)
    envelope = np.minimum(s.epicardium, s.right_wall)
    patchy = rng.uniform(0.5, 3) + 3.0 * np.cos(s.angle + rng.uniform(0, 6)) * np.cos(2 * s.angle + rng.uniform(0, 6))
    paint(image, cover(envelope - patchy, soft), v["fat"])
    paint(image, cover(s.right_wall, soft), v["myocardium"])
    right = cover(s.right, soft)
    paint(image, right, v["blood"])
    x, y, z = s.local
    for _ in range(7):
        away = heart.radius * 0.4 + rng.uniform(0.5, 1.1) * heart.right_reach
        at = (away, rng.uniform(-24, 26), rng.uniform(-40, 20))
        trabecula = ellipsoid((x, y, z), at, (rng.uniform(1.5, 4), rng.uniform(1.5, 3), 16), turn=rng.uniform(0, 180))
        paint(image, cover(trabecula, soft) * right * below, v["myocardium"])
    paint(image, cover(s.epicardium, soft), v["myocardium"])
    cavity = cover(s.cavity, soft)
    paint(image, cavity, v["blood"])
    for side in (rng.uniform(35, 70), rng.uniform(-75, -40), rng.uniform(150, 200)):
        if side > 100 and rng.uniform() < 0.6:
            continue  # a third papillary muscle is the exception
        angle, far = np.deg2rad(side + 180), heart.radius * rng.uniform(0.52, 0.72)
        at = (far * np.cos(angle), far * np.sin(angle), heart.base - heart.length * rng.uniform(0.45, 0.62))
        size = heart.radius * rng.uniform(0.16, 0.26)
        muscle = ellipsoid((x, y, z), at, (size, size * rng.uniform(0.8, 1.3), heart.length * 0.27))
        paint(image, cover(muscle, soft) * cavity * below, v["myocardium"])
    # above the valves: atrial blood with a thin wall, unlabelled
    above = 1 - below
    atrium = ellipsoid((x, y, z), (6, -4, heart.base + 12), (heart.radius * 1.35, heart.radius * 1.1, 24))
    paint(image, cover(atrium - 3, soft) * above, v["myocardium"])
    paint(image, cover(atrium, soft) * above, v["blood"])


def paint_scar(image: Array, s: Surfaces, scar: Scar, v: dict[str, float], soft: float) -> None:
    """Bright scar and dark core inside the wall; edges are a tenth of the wall wide."""
    wall = cover(s.epicardium, soft) * (1 - cover(s.cavity, soft)) * cover(s.above_base, 2.0)
    paint(image, cover(scar.infarct, 0.1) * wall, v["infarct"])
    paint(image, cover(scar.no_reflow, 0.1) * wall, v["no_reflow"])


def draw_cine(rng: np.random.Generator, *, style: SiteStyle, size: tuple[int, int, int]) -> Phantom:
    """One cine frame: 1 left-ventricular cavity, 2 myocardium, 3 right-ventricular cavity."""
    return _draw(rng, style, size, late=False)


def draw_late_enhancement(rng: np.random.Generator, *, style: SiteStyle, size: tuple[int, int, int]) -> Phantom:
    """Late enhancement, marked as in EMIDEC: 1 left-ventricular cavity, 2 normal myocardium, 3 infarct, 4 no-reflow."""
    return _draw(rng, style, size, late=True)


def _draw(rng: np.random.Generator, style: SiteStyle, size: tuple[int, int, int], *, late: bool) -> Phantom:
    points = grid(size, style.spacing, subslices=SUBSLICES)
    heart = draw_heart(rng, style, size[2] * style.spacing[2], late=late)
    value = tissue_values(rng, style)
    soft = 0.5 * max(style.spacing[:2])
    s = surfaces(points, heart, rng)
    image = np.zeros(points[0].shape, dtype=np.float32)
    paint_thorax(image, points, rng, value, soft)
    paint_heart(image, s, heart, rng, value, soft)
    label = heart_label(s, right=not late)
    scar = draw_scar(s, heart, rng) if late else None
    if scar is not None:
        paint_scar(image, s, scar, value, soft)
        label_scar(label, scar)
    fine_size = (size[0], size[1], size[2] * SUBSLICES)
    coarse, fine = smooth_noise(rng, fine_size, (28, 28, 8)), smooth_noise(rng, fine_size, (60, 60, 16))
    image *= 1 + 0.06 * coarse + 0.05 * fine
    measured = acquire_mr(through_plane_mean(image, SUBSLICES), rng, style)
    return Phantom(image=measured, label=label, spacing=style.spacing)
