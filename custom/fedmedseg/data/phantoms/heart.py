"""The ventricles as implicit surfaces: one patient's measures, their surfaces and labels, and infarcts in the wall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmedseg.data.phantoms.geometry import Array, Points, rotate, warp
from fedmedseg.data.phantoms.style import SiteStyle

SUBSLICES = 3
"""Samples inside a slice; odd, so that the middle one gives the label."""
CAVITY, MYOCARDIUM, RIGHT = 1, 2, 3
"""Labels of cine."""
INFARCT, NO_REFLOW = 3, 4
"""Labels of late enhancement after cavity and myocardium, as in EMIDEC, whose readers leave out the right ventricle."""


@dataclass(frozen=True, kw_only=True)
class Heart:
    """One patient's heart; lengths in mm, angles in degrees, in the short-axis frame (x right, y anterior, z base)."""

    kind: str
    centre: tuple[float, float]
    turn: float
    radius: float
    """Left-ventricular cavity at the base."""
    wall: float
    septal_extra: float
    length: float
    base: float
    """z of the valve plane."""
    lean: tuple[float, float]
    """In-plane drift of the axis per mm of z."""
    right_reach: float
    right_height: float
    right_length: float
    ripple: tuple[tuple[int, float, float], ...]
    """(waves around, relative height, phase) of the contour."""


def draw_heart(rng: np.random.Generator, style: SiteStyle, depth: float, *, late: bool = False) -> Heart:
    """Sample a heart whose long axis suits a stack of ``depth`` mm.

    Args:
        late: Late enhancement, which is imaged in diastole: no contraction, a stack that hardly passes
            the valve plane, and a wall thick enough for an infarct to span several voxels.
    """
    kinds = list(style.anatomy)
    kind = str(rng.choice(kinds, p=np.array(list(style.anatomy.values())) / sum(style.anatomy.values())))
    contraction = rng.choice([1.0, 0.8])  # about half the cine cases are near end-systole
    if late:
        contraction = 1.0
    wall_scale = 1.3 if late else 1.0
    radius, wall = rng.uniform(21, 25), rng.uniform(8, 10) * wall_scale
    septal = 0.0
    # a thicker wall must not cover the right ventricle
    right = rng.uniform(32, 37) + 25 * (wall_scale - 1)
    if kind == "dilated":
        radius, wall, contraction = radius * 1.25, wall * 0.8, max(float(contraction), 0.92)
    elif kind == "hypertrophic":
        radius, wall, septal = radius * 0.85, wall * 1.35, rng.uniform(1, 5)
    elif kind == "right_load":
        radius, right = radius * 0.9, right * 1.3
    thick = wall * (1 + 0.9 * (1 - contraction))
    return Heart(
        kind=kind,
        centre=(rng.uniform(-17, -7), rng.uniform(-6, 6)),
        turn=style.turn + rng.normal(0, 8),
        radius=float(radius * contraction),
        wall=float(thick),
        septal_extra=float(septal),
        length=float(depth * rng.uniform(0.88, 1.05)),
        base=float(depth * (rng.uniform(0.40, 0.54) + (0.06 if late else 0))),
        lean=(float(rng.normal(0, 0.06)), float(rng.normal(0, 0.06))),
        right_reach=float(right * (0.6 + 0.4 * contraction)),
        right_height=float(rng.uniform(33, 40)),
        right_length=float(rng.uniform(0.78, 0.95)),
        ripple=tuple((k, float(rng.normal(0, 0.06 / k)), float(rng.uniform(0, 2 * np.pi))) for k in (2, 3, 4)),
    )


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Signed distances in mm of one heart, (X, Y, Z * SUBSLICES); negative inside.

    ``angle`` is the direction around the cavity's centre in radians (0 towards the right ventricle),
    ``depth`` goes from 0 at the cavity to 1 at the outer wall.
    """

    cavity: Array
    epicardium: Array
    right: Array
    right_wall: Array
    above_base: Array
    angle: Array
    depth: Array
    local: Points


def surfaces(points: Points, heart: Heart, rng: np.random.Generator) -> Surfaces:
    """The heart's implicit surfaces on a grid."""
    bent = warp(points, rng, amplitude=1.6, wavelength=75)
    x = bent[0] - heart.centre[0] - heart.lean[0] * bent[2]
    y = bent[1] - heart.centre[1] - heart.lean[1] * bent[2]
    x, y = rotate(x, y, heart.turn)
    height = heart.base - points[2]  # mm below the valve plane
    radial, angle = np.hypot(x, y), np.arctan2(y, x)
    ripple = 1 + sum(a * np.cos(k * angle + phase) for k, a, phase in heart.ripple)

    def profile(length: float) -> Array:
        return np.sqrt(np.clip(1 - (np.clip(height, 0, None) / length) ** 2, 0, 1))

    inner = heart.radius * ripple * profile(heart.length - heart.wall)
    thickness = heart.wall + heart.septal_extra * np.clip(np.cos(angle), 0, 1) ** 2
    outer = (heart.radius * ripple + thickness) * profile(heart.length)
    # below the apex a profile of 0 would leave a line of zero distance
    cavity = np.where(inner > 1.0, radial - inner, radial + 5).astype(np.float32)
    epicardium = np.where(outer > 1.0, radial - outer, radial + 5).astype(np.float32)
    reach = profile(heart.length * heart.right_length)
    shrink = np.clip(reach, 0.05, 1)
    centre = heart.radius + heart.wall * 0.2
    right = (
        np.sqrt(
            ((x - centre * shrink) / (heart.right_reach * shrink)) ** 2
            + ((y - 4 * shrink) / (heart.right_height * shrink)) ** 2
        )
        - 1
    ) * (heart.right_reach * shrink)
    right = np.where(reach > 0.1, right, 20)
    bare = right.astype(np.float32)
    right = np.maximum(right, -(epicardium - 1.0)).astype(np.float32)
    depth = np.clip((radial - inner) / np.maximum(outer - inner, 1e-3), 0, 1).astype(np.float32)
    return Surfaces(
        cavity=cavity,
        epicardium=epicardium,
        right=right,
        right_wall=(bare - 3.2).astype(np.float32),
        above_base=(-height).astype(np.float32),
        angle=angle.astype(np.float32),
        depth=depth,
        local=(x, y, points[2]),
    )


def heart_label(s: Surfaces, *, right: bool = True) -> np.ndarray:
    """Label volume (X, Y, Z) from the middle sample of each slice; papillary muscles belong to the cavity.

    Without ``right`` the right ventricle is background.
    """
    middle = slice(SUBSLICES // 2, None, SUBSLICES)
    below = s.above_base[..., middle] <= 0
    label = np.zeros(below.shape, dtype=np.uint8)
    if right:
        label[(s.right[..., middle] <= 0) & below] = RIGHT
    label[(s.epicardium[..., middle] <= 0) & below] = MYOCARDIUM
    label[(s.cavity[..., middle] <= 0) & below] = CAVITY
    return label


@dataclass(frozen=True, kw_only=True)
class Scar:
    """Infarct and no-reflow core as signed functions, negative inside; both cut to the myocardium when used."""

    infarct: Array
    no_reflow: Array


def draw_scar(s: Surfaces, heart: Heart, rng: np.random.Generator) -> Scar | None:
    """One infarct that starts at the endocardium, with a dark core in most patients; None in a healthy one."""
    if rng.uniform() < 0.08:
        return None
    around = np.abs(np.angle(np.exp(1j * (s.angle - rng.uniform(0, 2 * np.pi)))))
    along = np.abs(s.above_base + heart.length * rng.uniform(0.35, 0.6))
    width, reach = np.deg2rad(rng.uniform(65, 100)), heart.length * rng.uniform(0.4, 0.6)
    transmural = rng.uniform(0.95, 1.2)
    edge = (around / width) ** 2 + (along / reach) ** 2
    ragged = 0.10 * np.sin(5 * s.angle + rng.uniform(0, 6))
    infarct = np.maximum(s.depth - transmural * np.sqrt(np.clip(1 - edge, 0, 1)) - ragged * 0.5, edge + ragged - 1)
    core = np.ones_like(infarct)
    if rng.uniform() < 0.8:
        share = rng.uniform(0.6, 0.75)
        inner = (around / (width * share)) ** 2 + (along / (reach * share)) ** 2
        core = np.maximum(np.abs(s.depth - 0.45 * transmural) - 0.24 * transmural, inner - 1)
        core = np.maximum(core, infarct)
    return Scar(infarct=infarct.astype(np.float32), no_reflow=core.astype(np.float32))


def label_scar(label: np.ndarray, scar: Scar) -> None:
    """Put infarct and no-reflow into the myocardium of a label volume without right ventricle, in place."""
    middle = slice(SUBSLICES // 2, None, SUBSLICES)
    muscle = label == MYOCARDIUM
    label[muscle & (scar.infarct[..., middle] <= 0)] = INFARCT
    label[muscle & (scar.no_reflow[..., middle] <= 0)] = NO_REFLOW
