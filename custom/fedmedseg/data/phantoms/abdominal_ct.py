"""Abdominal CT phantoms: liver, spleen, pancreas and kidneys among bowel, vessels and bone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmedseg.data.phantoms.geometry import (
    Array,
    Canvas,
    Phantom,
    Points,
    ellipsoid,
    grid,
    rotate,
    smooth_noise,
    tube,
    warp,
)
from fedmedseg.data.phantoms.scanner import acquire_ct, tissue_values
from fedmedseg.data.phantoms.style import SiteStyle

LIVER, SPLEEN, PANCREAS, KIDNEYS = 1, 2, 3, 4
AIR = -1000.0


@dataclass(frozen=True, kw_only=True)
class Build:
    """One patient's proportions: half-widths and fat layer in mm, organ scales relative to an average adult."""

    width: float
    depth: float
    fat: float
    inner_fat: float
    liver: float
    spleen: float


def draw_build(rng: np.random.Generator, style: SiteStyle) -> Build:
    """Sample a patient of this site's mix."""
    kinds = list(style.anatomy)
    weights = np.array(list(style.anatomy.values()))
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    fat = {"obese": rng.uniform(24, 34), "thin": rng.uniform(5, 9)}.get(kind, rng.uniform(10, 18))
    large = kind == "congested"
    return Build(
        width=float(rng.uniform(118, 126) + fat),
        depth=float(rng.uniform(82, 90) + fat),
        fat=float(fat),
        inner_fat={"obese": 1.0, "thin": 0.2}.get(kind, 0.55),
        liver=float(rng.uniform(1.05, 1.15) if large else rng.uniform(0.9, 1.02)),
        spleen=float(rng.uniform(1.25, 1.5) if large else rng.uniform(0.9, 1.1)),
    )


class Jitter:
    """Places that vary between patients."""

    def __init__(self, *, rng: np.random.Generator, spread: float) -> None:
        self.rng = rng
        self.spread = spread

    def __call__(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        moved = np.array([x, y, z]) + self.rng.normal(0, self.spread, size=3)
        return float(moved[0]), float(moved[1]), float(moved[2])


def draw_abdomen(rng: np.random.Generator, *, style: SiteStyle, size: tuple[int, int, int]) -> Phantom:
    """One abdomen in HU: 1 liver, 2 spleen, 3 pancreas, 4 kidneys."""
    straight = grid(size, style.spacing)
    build = draw_build(rng, style)
    value = tissue_values(rng, style)
    points = _turned(warp(straight, rng, amplitude=3.5, wavelength=130), style.turn + float(rng.normal(0, 3)))
    canvas = Canvas(points=points, background=AIR, softness=0.5 * style.spacing[0])
    near = Jitter(rng=rng, spread=4.0)
    inner = paint_trunk(canvas, build, rng, value)
    paint_gut(canvas, inner, near, rng, value)
    paint_vessels(canvas, rng, value)
    paint_kidneys(canvas, near, rng, value)
    paint_spleen_and_liver(canvas, build, inner, near, rng, value)
    paint_pancreas(canvas, near, rng, value)
    paint_lungs(canvas, inner, near, rng, value)
    texture = 5 * smooth_noise(rng, size, (22, 22, 16)) * (canvas.image > -200)
    return Phantom(image=acquire_ct(canvas.image + texture, rng, style), label=canvas.label, spacing=style.spacing)


def _turned(points: Points, degrees: float) -> Points:
    x, y = rotate(points[0], points[1], degrees)
    return x, y, points[2]


def paint_trunk(canvas: Canvas, build: Build, rng: np.random.Generator, v: dict[str, float]) -> Array:
    """Skin to peritoneum, spine, ribs and psoas; returns the signed distance to the inside of the muscle wall."""
    p = canvas.points
    body = ellipsoid(p, (0, 0, 0), (build.width, build.depth, 900))
    canvas.add(body, v["fat"])
    canvas.add(body + build.fat, v["muscle"])
    inner = body + build.fat + rng.uniform(11, 15)
    # between the organs: fat in a heavy patient, bowel and mesentery of soft-tissue density in a thin one
    canvas.add(inner, build.inner_fat * v["fat"] + (1 - build.inner_fat) * 10)
    for side in (-1, 1):
        canvas.add(ellipsoid(p, (side * 38, -56, -50), (17, 20, 75)), v["muscle"])
        erector = ellipsoid(p, (side * 32, -82, 0), (26, 15, 400))
        canvas.add(np.maximum(erector, body + 4), v["muscle"])
    canvas.add(ellipsoid(p, (0, -60, 0), (22, 18, 400)), v["bone"])
    canvas.add(ellipsoid(p, (0, -60, 0), (18, 14, 400)), v["marrow"])
    canvas.add(ellipsoid(p, (0, -82, 0), (5, 16, 400)), v["bone"])
    ring = body + build.fat + 5
    for angle in np.deg2rad(np.arange(15, 360, 27)):
        if abs(np.sin(angle)) > 0.95:
            continue
        reach = np.array([(build.width - build.fat - 5) * np.cos(angle), (build.depth - build.fat - 5) * np.sin(angle)])
        height = rng.uniform(20, 60)
        rib = ellipsoid(p, (float(reach[0]), float(reach[1]), float(height)), (16, 16, 70))
        spaced = np.abs(np.mod(p[2] - 0.4 * p[1] + 10 * angle, 28) - 14) - 5
        section = np.maximum(np.maximum(rib, np.abs(ring) - 4), spaced)
        canvas.add(section, v["bone"])
    return inner


def paint_gut(canvas: Canvas, inner: Array, near: Jitter, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Small bowel, colon and stomach: walls and contents in the range of pancreas and spleen."""
    p = canvas.points
    for _ in range(8):
        start = np.array([rng.uniform(-70, 60), rng.uniform(0, 45), rng.uniform(-110, -15)])
        path = np.cumsum(np.vstack([start, rng.normal(0, 22, size=(3, 3))]), axis=0)
        loop = np.maximum(tube(p, path, rng.uniform(9, 13)), inner + 4)
        canvas.add(loop, v["bowel_wall"])
        canvas.add(loop + 4.5, v["bowel"])
    for side in (-1, 1):
        path = np.array([near(side * 88, 5, -110), near(side * 92, 0, -60), near(side * 84, 8, -22)])
        colon = np.maximum(tube(p, path, rng.uniform(17, 22)), inner + 3)
        canvas.add(colon, v["bowel_wall"])
        canvas.add(colon + 4, -60.0 + 60 * rng.uniform())
        gas = np.maximum(colon + 5, 12 - p[1])
        canvas.add(gas, -800.0)
    stomach = np.maximum(
        ellipsoid(p, near(-48, 28, 48), (rng.uniform(32, 40), 27, 40), turn=float(rng.normal(-20, 10))), inner + 3
    )
    canvas.add(stomach, v["bowel_wall"])
    canvas.add(stomach + 5, v["stomach"])
    canvas.add(np.maximum(stomach + 6, rng.uniform(34, 46) - p[1]), -850.0)
    duodenum = tube(p, np.array([near(30, 26, 26), near(54, 8, 8), near(50, -6, -34), near(10, -14, -40)]), 11)
    canvas.add(duodenum, v["bowel_wall"])
    canvas.add(duodenum + 5, v["bowel"])


def paint_vessels(canvas: Canvas, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Aorta, vena cava, mesenteric and splenic vessels."""
    p = canvas.points
    canvas.add(tube(p, np.array([[-10, -32, -160], [-8, -33, 160]]), rng.uniform(10, 13)), v["artery"])
    canvas.add(tube(p, np.array([[20, -32, -160], [22, -28, 60], [16, -10, 120]]), rng.uniform(11, 14)), v["vein"])
    canvas.add(tube(p, np.array([[-8, -24, 22], [-8, 2, 0], [-6, 14, -70]]), 5.0), v["artery"])
    canvas.add(tube(p, np.array([[8, 12, -60], [8, 6, 0], [16, 4, 18], [42, 4, 44]]), 6.5), v["vein"])


def paint_pancreas(canvas: Canvas, near: Jitter, rng: np.random.Generator, v: dict[str, float]) -> None:
    """A lobulated tube from the duodenum to the hilum of the spleen, with the splenic vein behind it."""
    p = canvas.points
    path = np.array([near(36, 6, -14), near(32, 12, 4), near(10, 24, 14), near(-22, 20, 24), near(-62, -12, 38)])
    canvas.add(tube(p, path[2:] + np.array([0, -15, 0]), 5.0), v["vein"])
    radii = np.array([15, 16, 12, 12.5, 10]) * rng.uniform(0.92, 1.12)
    lobes = 1.2 * np.sin(p[0] / 4.5 + rng.uniform(0, 6)) * np.sin(p[2] / 5 + rng.uniform(0, 6))
    canvas.add((tube(p, path, radii) + lobes).astype(np.float32), v["pancreas"], label=PANCREAS)


def paint_kidneys(canvas: Canvas, near: Jitter, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Cortex, medulla, a fatty sinus open to the middle, and fat around."""
    p = canvas.points
    for side in (-1, 1):
        x, y, z = near(side * 60, -44, -18 - 8 * side)
        turn = side * float(rng.uniform(15, 35))
        radii = (rng.uniform(26, 30), rng.uniform(28, 33), rng.uniform(48, 56))
        kidney = ellipsoid(p, (x, y, z), radii, turn=turn)
        canvas.add(kidney - 6, v["fat"])
        canvas.add(kidney, v["kidney"], label=KIDNEYS)
        canvas.add(kidney + 8, v["medulla"], label=KIDNEYS)
        sinus = ellipsoid(p, (x - side * 12, y + 4, z), (12, 6, 14), turn=turn)
        canvas.add(sinus, v["fat"])


def paint_spleen_and_liver(
    canvas: Canvas, build: Build, inner: Array, near: Jitter, rng: np.random.Generator, v: dict[str, float]
) -> None:
    """Both organs lie against the wall; hepatic veins and a gallbladder belong to the liver's surroundings."""
    p = canvas.points
    scale = build.spleen
    place = near(-78, -38, 44)
    spleen = ellipsoid(p, place, (29 * scale, 42 * scale, 46 * scale), turn=float(rng.normal(-25, 6)))
    hilum = ellipsoid(p, (place[0] + 32 * scale, place[1] + 6, place[2]), (17, 20, 26))
    spleen = np.maximum(np.maximum(spleen, inner + 2), -hilum)
    canvas.add(spleen, v["spleen"], label=SPLEEN)
    scale = build.liver
    right = ellipsoid(p, near(66, 0, 44), (62 * scale, 74 * scale, 72 * scale), turn=float(rng.normal(0, 6)))
    left = ellipsoid(p, near(2, 44, 62), (64 * scale, 34, 34 * scale), turn=float(rng.normal(12, 6)))
    kidney_bed = ellipsoid(p, (58, -52, -24), (34, 34, 60))
    cava = tube(p, np.array([[20, -34, -160], [22, -30, 60], [16, -10, 120]]), 17.0)
    liver = np.maximum(np.maximum(np.minimum(right, left), inner + 2), -np.minimum(kidney_bed, cava))
    canvas.add(liver, v["liver"], label=LIVER)
    for _ in range(4):
        end = near(rng.uniform(20, 105), rng.uniform(-40, 40), rng.uniform(20, 80))
        branch = np.maximum(tube(p, np.array([[24, -14, 78], end]), 4.0), liver + 2)
        canvas.add(branch, v["vein"], label=LIVER)
    canvas.add(ellipsoid(p, near(46, 46, 0), (14, 16, 26)), v["gallbladder"])


def paint_lungs(canvas: Canvas, inner: Array, near: Jitter, rng: np.random.Generator, v: dict[str, float]) -> None:
    """Lung bases above the domes of the diaphragm, behind and beside the upper abdomen."""
    p = canvas.points
    for side in (-1, 1):
        x, y, _ = near(side * 62, -8, 0)
        dome = rng.uniform(92, 104) + (6 if side > 0 else 0)
        curve = dome - np.clip(((p[0] - x) / 60) ** 2 * 14 + ((p[1] - y) / 85) ** 2 * 25, 0, 35)
        middle = np.maximum(10 - side * p[0], -ellipsoid(p, (0, -60, 0), (28, 40, 400)))
        canvas.add(np.maximum(np.maximum((curve - p[2]) * 0.7, inner), middle).astype(np.float32), v["lung"])
