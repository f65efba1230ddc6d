"""What surrounds the heart on short-axis MR: chest wall, lungs, upper abdomen, great vessels."""

from __future__ import annotations

import numpy as np

from fedmedseg.data.phantoms.geometry import Array, Points, cover, ellipsoid, paint, warp


def paint_thorax(image: Array, points: Points, rng: np.random.Generator, value: dict[str, float], soft: float) -> None:
    """Everything around the heart: chest wall, lungs with vessels, liver, spleen, stomach, aorta, spine."""

    def near(*centre: float, jitter: float = 5.0) -> tuple[float, float, float]:
        moved = np.array(centre) + rng.normal(0, jitter, size=3)
        return float(moved[0]), float(moved[1]), float(moved[2])

    wide = warp(points, rng, amplitude=4, wavelength=110)
    image[:] = value["air"]
    body = ellipsoid(wide, near(5, -28, 0, jitter=4), (128, 108, 400))
    paint(image, cover(body, soft), value["fat"])
    paint(image, cover(body + rng.uniform(7, 14), soft), value["muscle"])
    lungs = np.minimum(
        ellipsoid(wide, near(-82, -2, 10), (50, 62, 160)),
        ellipsoid(wide, near(96, 0, 20), (48, 66, 160)),
    )
    paint(image, cover(lungs, soft), value["lung"])
    for _ in range(14):
        centre = (rng.choice([-1, 1]) * rng.uniform(48, 84), rng.uniform(-50, 45), rng.uniform(-40, 40))
        vessel = ellipsoid(points, centre, (rng.uniform(1.5, 4), rng.uniform(1.5, 4), rng.uniform(5, 25)))
        paint(image, cover(np.maximum(vessel, lungs), soft), value["blood"])
    liver = ellipsoid(wide, near(42, -62, -18), (58, 34, 52), turn=rng.normal(-15, 8))
    paint(image, cover(liver, soft), value["liver"])
    for _ in range(5):
        centre = near(35, -58, -15, jitter=14)
        vessel = ellipsoid(points, centre, (rng.uniform(2, 5), rng.uniform(2, 4), 12), turn=rng.uniform(0, 180))
        paint(image, cover(np.maximum(vessel, liver), soft), value["blood"])
    spleen = ellipsoid(wide, near(-68, -48, -20), (20, 17, 40), turn=rng.normal(20, 10))
    paint(image, cover(spleen, soft), value["spleen"])
    # a stomach with a wall and bright contents looks like a ventricle in cross-section
    stomach = ellipsoid(wide, near(-38, -58, -22), (24, 16, 26), turn=rng.normal(0, 15))
    paint(image, cover(stomach, soft), value["myocardium"])
    paint(image, cover(stomach + rng.uniform(4, 7), soft), value["stomach"])
    spine = ellipsoid(wide, near(8, -92, 0, jitter=3), (20, 18, 300))
    paint(image, cover(spine, soft), value["bone"])
    aorta = ellipsoid(points, near(-20, -66, 0, jitter=4), (rng.uniform(10, 13), rng.uniform(10, 13), 300))
    paint(image, cover(aorta - 2.0, soft), value["myocardium"])
    paint(image, cover(aorta, soft), value["blood"])
