"""Cardiac CT phantoms: an aortic root with hinge points, ostia, membranous septum, calcium, coronaries and chambers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmedseg.data.phantoms.geometry import (
    Array,
    Canvas,
    Phantom,
    Point,
    Points,
    ellipsoid,
    grid,
    smooth_noise,
    tube,
    warp,
)
from fedmedseg.data.phantoms.scanner import acquire_ct, tissue_values
from fedmedseg.data.phantoms.style import SiteStyle

CALCIFICATION, CORONARIES = 1, 2
MYOCARDIUM, LEFT_ATRIUM, LEFT_VENTRICLE, RIGHT_ATRIUM, RIGHT_VENTRICLE, AORTA, PULMONARY_ARTERY = range(1, 8)
"""The heart's structures in the order of TotalSegmentator's task heartchambers_highres."""
CUSPS = ("RCC", "NCC", "LCC")


@dataclass(frozen=True, kw_only=True)
class Root:
    """One patient's aortic root in its own frame: u right, v anterior, w along the outflow; mm and radians.

    The annulus lies in the plane w = 0.
    """

    frame: NDArray[np.float64]
    """Rows are the directions of u, v and w in the patient's frame."""
    centre: NDArray[np.float64]
    radius: float
    """Annulus."""
    oval: float
    bulge: float
    """Relative height of the sinuses over the annulus."""
    height: float
    """From the annulus to the sinotubular junction."""
    cusps: dict[str, float]
    """Angle of each cusp's nadir."""
    ostia: dict[str, tuple[float, float]]
    """(angle, w) of RCA and LCA."""
    septum: tuple[float, float]
    """Angle and length of the membranous septum."""
    calcium: int
    """Number of calcified nodules."""

    def wall(self, angle: Array | float, w: Array | float) -> Array:
        """Inner radius in mm at an angle and a height: outflow tract, three sinuses, junction, ascending aorta."""
        share = np.clip(np.asarray(w) / self.height, 0, 1)
        lobes = np.max([0.5 + 0.5 * np.cos(np.asarray(angle) - c) for c in self.cusps.values()], axis=0)
        sinus = self.bulge * np.clip(np.sin(np.pi * share), 0, 1) ** 0.8 * (0.2 + 0.8 * lobes**2)
        rise = 0.12 * share + 0.16 * np.clip(np.asarray(w) / self.height - 1, 0, 1)
        oval = 1 + self.oval * np.cos(2 * np.asarray(angle)) * (1 - share)
        return np.asarray(self.radius * (oval + sinus + rise), dtype=np.float32)

    def place(self, angle: float, w: float, *, share: float = 1.0) -> Point:
        """Patient coordinates in mm of a point on the wall, or at ``share`` of the way from the axis to it."""
        reach = share * float(self.wall(angle, w))
        local = np.array([reach * np.cos(angle), reach * np.sin(angle), w])
        x, y, z = self.centre + local @ self.frame
        return float(x), float(y), float(z)

    def at(self, u: float, v: float, w: float) -> Point:
        """Patient coordinates in mm of a point given in the root's frame."""
        x, y, z = self.centre + np.array([u, v, w]) @ self.frame
        return float(x), float(y), float(z)


def draw_root(rng: np.random.Generator, style: SiteStyle) -> Root:
    """Sample a root of this site's mix of patients."""
    kinds = list(style.anatomy)
    weights = np.array(list(style.anatomy.values()))
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    radius = rng.uniform(11.5, 13.0) * {"dilated": 1.18, "small": 0.86}.get(kind, 1.0)
    first = np.deg2rad(82 + rng.normal(0, 6))
    apart = 2 * np.pi / 3
    cusps = {name: float(first - i * apart + rng.normal(0, 0.06)) for i, name in enumerate(CUSPS)}
    height = radius * rng.uniform(1.5, 1.75)
    low = 0.75 if kind == "small" else 1.0
    ostia = {
        "RCA": (cusps["RCC"] + float(rng.normal(0, 0.12)), float(height * low * rng.uniform(0.72, 0.88))),
        "LCA": (cusps["LCC"] + float(rng.normal(0.1, 0.12)), float(height * low * rng.uniform(0.62, 0.78))),
    }
    turn = np.deg2rad(style.turn + rng.normal(0, 7))
    tilt, towards = np.deg2rad(rng.normal(24, 6)), np.deg2rad(rng.normal(30, 20))
    return Root(
        frame=_frame(turn, tilt, towards),
        centre=rng.normal(0, 4, size=3) + np.array([0.0, 0.0, -8.0]),
        radius=float(radius),
        oval=float(rng.uniform(0.04, 0.12)),
        bulge=float(rng.uniform(0.3, 0.42)),
        height=float(height),
        cusps=cusps,
        ostia=ostia,
        septum=(float((cusps["RCC"] + cusps["NCC"]) / 2 + rng.normal(0, 0.08)), float(rng.uniform(5.0, 9.0))),
        calcium=int(rng.integers(9, 14) if kind == "heavy_calcium" else rng.integers(5, 9)),
    )


def _frame(turn: float, tilt: float, towards: float) -> NDArray[np.float64]:
    """Rows u, v, w: turned about the body's axis, then the outflow tilted by ``tilt`` to direction ``towards``."""
    lean = np.array([np.cos(towards), np.sin(towards), 0.0])
    side = np.array([-np.sin(towards), np.cos(towards), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    outflow = np.cos(tilt) * up + np.sin(tilt) * lean
    forward = np.cos(tilt) * lean - np.sin(tilt) * up
    start = np.array([np.cos(turn), np.sin(turn), 0.0])
    u = (start @ lean) * forward + (start @ side) * side
    return np.stack([u, np.cross(outflow, u), outflow])


def draw_aortic_root(rng: np.random.Generator, *, style: SiteStyle, size: tuple[int, int, int]) -> Phantom:
    """One root in HU: label 1 is valve calcification, 2 the coronaries; landmarks as in ``style.LANDMARKS``."""
    points = grid(size, style.spacing)
    root = draw_root(rng, style)
    value = tissue_values(rng, style)
    canvas = Canvas(points=points, background=value["fat"], softness=0.5 * style.spacing[0])
    offset = [p - c for p, c in zip(points, root.centre, strict=True)]
    local = [sum(o * float(d) for o, d in zip(offset, row, strict=True)) for row in root.frame]
    u, v, w = (np.asarray(part, dtype=np.float32) for part in local)
    chest = warp(points, rng, amplitude=2.5, wavelength=90)
    paint_chest(canvas, chest, rng, value)
    paint_chambers(canvas, warp((u, v, w), rng, amplitude=1.5, wavelength=80), root, rng, value)
    paint_root(canvas, (u, v, w), root, value)
    paint_coronaries(canvas, root, rng, value)
    paint_calcium(canvas, root, rng, value)
    texture = 6 * smooth_noise(rng, size, (24, 24, 18)) * (canvas.image > -300)
    image = acquire_ct(canvas.image + texture, rng, style)
    return Phantom(
        image=image,
        label=canvas.label,
        spacing=style.spacing,
        landmarks=landmarks(root),
        heart=canvas.structures,
    )


def landmarks(root: Root) -> dict[str, Point]:
    """The seven points of a root, mm."""
    angle, length = root.septum
    found = {name: root.place(root.cusps[name], 0.0) for name in CUSPS}
    found |= {name: root.place(*root.ostia[name]) for name in ("RCA", "LCA")}
    return found | {"MS1": root.place(angle, 0.0), "MS2": root.place(angle, -length)}


def paint_chest(canvas: Canvas, p: Points, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Lungs, sternum, spine, descending aorta with plaques."""
    for side in (-1, 1):
        x = side * rng.uniform(62, 70)
        canvas.add(ellipsoid(p, (x, rng.uniform(-8, 8), 10), (26, 48, 90)), v["lung"])
    canvas.add(ellipsoid(p, (0, 68, 0), (200, 13, 300)), v["muscle"])
    canvas.add(ellipsoid(p, (4, 56, 0), (14, 6, 300)), v["bone"])
    canvas.add(ellipsoid(p, (6, -62, 0), (20, 16, 300)), v["bone"])
    aorta = np.array([[-26, -50, -90], [-27, -48, 90]]) + rng.normal(0, 2, size=3)
    canvas.add(tube(p, aorta, 13.0), v["muscle"])
    canvas.add(tube(p, aorta, 11.0), v["blood_left"], structure=AORTA)
    for _ in range(4):  # plaques of the descending aorta look like valve calcium and are not
        angle = rng.uniform(0, 2 * np.pi)
        spot = aorta[0] + np.array([11.5 * np.cos(angle), 11.5 * np.sin(angle), rng.uniform(60, 125)])
        plaque = ellipsoid(p, (float(spot[0]), float(spot[1]), float(spot[2])), (2.6, 2.6, 5))
        canvas.add(plaque, v["calcium"], structure=None)


def paint_chambers(canvas: Canvas, p: Points, root: Root, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Chambers around the root, in the root's frame: both atria, both ventricles, pulmonary artery, superior cava."""
    r = root.radius
    atrium = ellipsoid(p, (-4, -(r + 22), 4), (34, 17, 24))
    canvas.add(atrium - 2, v["muscle"])
    canvas.add(atrium, 0.95 * v["blood_left"], structure=LEFT_ATRIUM)
    muscle = ellipsoid(p, (-26, 4, -46), (36, 34, 42))
    canvas.add(muscle, v["muscle"], structure=MYOCARDIUM)
    angle, length = root.septum
    # the muscular septum begins where the membranous one ends
    crest = ellipsoid(p, (0, 0, -length - 22), (r + 11, r + 11, 22))
    canvas.add(np.maximum(crest, p[2] + length), v["muscle"], structure=MYOCARDIUM)
    beside = (float((r + 20) * np.cos(angle - 0.25)), float((r + 20) * np.sin(angle - 0.25)), -8.0)
    side = ellipsoid(p, beside, (19, 22, 28))
    canvas.add(np.maximum(side, -crest), v["blood_right"], structure=RIGHT_ATRIUM)
    ventricle = np.maximum(ellipsoid(p, (4, r + 20, -24), (34, 17, 26)), -crest)
    canvas.add(ventricle - 3, v["muscle"])
    canvas.add(ventricle, v["blood_right"], structure=RIGHT_VENTRICLE)
    trunk = np.array([[-4, r + 18, -14], [-16, r + 14, 14], [-26, r - 4, 38], [-24, -16, 46]])
    canvas.add(tube(p, trunk, 13.5), v["muscle"])
    canvas.add(tube(p, trunk, 12.0), v["blood_right"], structure=PULMONARY_ARTERY)
    canvas.add(tube(p, np.array([[r + 22, 0, 8], [r + 24, -2, 80]]), rng.uniform(7, 9)), v["cava"])
    for _ in range(int(rng.integers(0, 4))):  # mitral calcium, outside the aortic valve
        spot = (rng.uniform(-26, -14), -(r + rng.uniform(4, 9)), rng.uniform(-16, -6))
        canvas.add(ellipsoid(p, spot, (3.5, 3, 3)), v["calcium"], structure=None)
    cavity = ellipsoid(p, (-24, 4, -44), (25, 23, 34))
    canvas.add(cavity, v["blood_left"], structure=LEFT_VENTRICLE)


def paint_root(canvas: Canvas, local: Points, root: Root, v: dict[str, float]) -> None:
    """Outflow tract, sinuses and ascending aorta with a wall, and three thin leaflets hinged at the annulus."""
    u, y, w = local
    bend = np.clip(w - root.height, 0, None) ** 2 / 220  # the ascending aorta curves to the right and back
    radial, angle = np.hypot(u - bend, y + 0.4 * bend), np.arctan2(y + 0.4 * bend, u - bend)
    inner = root.wall(angle, w)
    lumen = np.maximum(radial - inner, -w - 22).astype(np.float32)
    outside = np.maximum(lumen - 1.8, -w).astype(np.float32)
    canvas.add(outside, v["muscle"])
    # above the annulus the root is aorta, below it the ventricle's outflow
    canvas.add(lumen, v["blood_left"], structure=LEFT_VENTRICLE)
    canvas.structures[(lumen <= 0) & (w > 0)] = AORTA
    away = np.min([np.abs(np.angle(np.exp(1j * (angle - c)))) for c in root.cusps.values()], axis=0)
    share = np.clip(radial / inner, 0, 1)
    crown = 0.8 * root.height * (away / (np.pi / 3)) ** 2
    sheet = share**2 * crown + (1 - share**2) * 0.55 * root.height
    leaflet = np.maximum(np.abs(w - sheet) - 0.9, lumen - 0.5)
    canvas.add(leaflet.astype(np.float32), v["leaflet"], structure=None)


def paint_coronaries(canvas: Canvas, root: Root, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Left main with two branches and the right coronary, each in fat, with a few plaques: label 2.

    Inside the aorta nothing is a coronary: they begin at their ostia.
    """
    r = root.radius
    left, right = root.place(*root.ostia["LCA"]), root.place(*root.ostia["RCA"])
    low, high = root.ostia["LCA"][1], root.ostia["RCA"][1]
    tree, aorta = np.zeros(canvas.label.shape, dtype=bool), canvas.structures == AORTA
    fork = root.at(-(r + 15), -7 + float(rng.normal(0, 2)), low)
    branches = [
        [left, fork, root.at(-(r + 24), 8, low - 6), root.at(-(r + 28), 22, low - 22)],
        [fork, root.at(-(r + 22), -16, low - 10), root.at(-(r + 30), -22, low - 26)],
        [right, root.at(4, r + 11, high), root.at(r + 8, r + 10, high - 8), root.at(r + 16, r + 14, high - 30)],
    ]
    for branch in branches:
        path = np.array(branch)
        path[1:] += rng.normal(0, 1.2, size=path[1:].shape)
        vessel = tube(canvas.points, path, np.linspace(2.4, 1.6, len(path)))
        # fat around the vessel, but none inside the aorta
        outside = np.maximum(vessel - 3.0, 2.5 - _distance(canvas.points, np.array(branch[0])))
        canvas.add(outside.astype(np.float32), v["fat"])
        canvas.add(vessel, 0.95 * v["blood_left"], structure=None)
        tree |= (vessel <= 0) & ~aorta
        spot = path[1] + rng.normal(0, 1, size=3)
        plaque = ellipsoid(canvas.points, (float(spot[0]), float(spot[1]), float(spot[2])), (1.8, 1.8, 2.4))
        canvas.add(plaque, v["calcium"], structure=None)
    canvas.label[tree] = CORONARIES


def _distance(points: Points, place: NDArray[np.floating]) -> Array:
    return np.sqrt(sum((p - float(c)) ** 2 for p, c in zip(points, place, strict=True)))


def paint_calcium(canvas: Canvas, root: Root, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Nodules on leaflets and annulus: label 1."""
    for _ in range(root.calcium):
        cusp = root.cusps[str(rng.choice(CUSPS))]
        away = rng.uniform(-0.8, 0.8)
        height = 0.8 * root.height * (abs(away) / (np.pi / 3)) ** 2 * 0.8 + rng.uniform(-1, 2.5)
        place = root.place(cusp + away, float(height), share=float(rng.uniform(0.55, 0.95)))
        radii = rng.uniform(2.8, 5.2, size=3)
        nodule = ellipsoid(
            canvas.points, place, (float(radii[0]), float(radii[1]), float(radii[2])), turn=float(rng.uniform(0, 180))
        )
        canvas.add(nodule, v["calcium"] * rng.uniform(0.85, 1.15), label=CALCIFICATION, structure=None)
