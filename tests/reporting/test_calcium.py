"""Calcium: a case computed by hand, each convention on its own, and the scan of a physical phantom."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as connected

from fedmedseg.core.errors import DataError
from fedmedseg.reporting.calcium import calcium_score, volume_mm3, weight

SPACING = (0.5, 0.5, 3.0)
PHANTOM = Path(os.environ.get("FEDMEDSEG_DATA", "absent")) / "ct" / "calcium_phantom"


def volume():
    return np.zeros((12, 12, 4), dtype=np.float32)


def everything(image):
    return np.ones(image.shape, dtype=bool)


def test_a_case_by_hand():
    image = volume()
    image[1:5, 1:5, 0] = 150  # 16 voxels of 0.25 mm2: 4 mm2, weight 1
    image[1:5, 1:3, 1] = 250  # 2 mm2, weight 2
    image[2, 2, 1] = 420  # ... and 4 by its highest voxel
    image[8:10, 8:10, 1] = 320  # 1 mm2, weight 3
    image[8, 1, 2] = 900  # 0.25 mm2: too small
    score = calcium_score(image, everything(image), spacing=SPACING)
    assert score.agatston == pytest.approx(4 * 1 + 2 * 4 + 1 * 3)
    assert score.regions == 3
    assert score.dense_mm3 == pytest.approx((16 + 8 + 4 + 1) * 0.25 * 3)
    assert score.volume_mm3 == pytest.approx(image.size * 0.75)


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(129.9, 0), (130, 1), (199, 1), (200, 2), (299, 2), (300, 3), (399, 3), (400, 4), (2000, 4)],
)
def test_weights(highest, expected):
    assert weight(highest) == expected


def test_only_what_is_marked_counts():
    image = volume()
    image[1:5, 1:5, 0] = image[7:11, 7:11, 0] = 150
    mask = np.zeros(image.shape, dtype=bool)
    mask[0:6, 0:6] = True
    assert calcium_score(image, mask, spacing=SPACING).agatston == pytest.approx(4.0)


def test_slices_of_another_distance_count_by_their_share_of_three_millimetres():
    image = volume()
    image[1:5, 1:5, 0] = 150
    for thickness, expected in ((3.0, 4.0), (1.5, 2.0), (0.75, 1.0)):
        assert calcium_score(image, everything(image), spacing=(0.5, 0.5, thickness)).agatston == pytest.approx(
            expected
        )


def test_the_slices_may_follow_another_axis():
    image = volume()
    image[1:5, 1:5, 0] = 150
    turned = np.moveaxis(image, 2, 0)
    assert calcium_score(turned, everything(turned), spacing=(3.0, 0.5, 0.5), slice_axis=0).agatston == pytest.approx(4)


def test_voxels_that_share_a_corner_are_one_region():
    image = volume()
    for place in range(4):  # 1 mm2 in a diagonal line
        image[1 + place, 1 + place, 0] = 140
    assert calcium_score(image, everything(image), spacing=SPACING).regions == 1


def test_nothing_marked_is_nought():
    score = calcium_score(volume(), np.zeros((12, 12, 4), dtype=bool), spacing=SPACING)
    assert (score.agatston, score.volume_mm3, score.regions) == (0, 0, 0)


def test_another_grid_and_a_broken_spacing_are_refused():
    with pytest.raises(DataError, match="grid"):
        calcium_score(volume(), np.zeros((12, 12, 3), dtype=bool), spacing=SPACING)
    with pytest.raises(DataError, match="positive"):
        volume_mm3(np.ones((2, 2, 2), dtype=bool), (1, 1, 0))


@pytest.mark.skipif(not PHANTOM.is_dir(), reason="FEDMEDSEG_DATA names no folder with ct/calcium_phantom")
def test_the_scan_of_a_physical_phantom_is_scored_as_a_plain_loop_does_it():
    image, mask = (nib.load(PHANTOM / f"{name}.nii.gz") for name in ("image", "calcification"))
    hounsfield, marked = np.asarray(image.dataobj, dtype=np.float32), np.asarray(mask.dataobj) > 0
    spacing = tuple(float(step) for step in image.header.get_zooms()[:3])
    score = calcium_score(hounsfield, marked, spacing=spacing)
    expected = 0.0
    for z in range(hounsfield.shape[2]):
        parts, count = connected(marked[:, :, z] & (hounsfield[:, :, z] >= 130), np.ones((3, 3)))
        for number in range(1, count + 1):
            area = (parts == number).sum() * spacing[0] * spacing[1]
            highest = hounsfield[:, :, z][parts == number].max()
            if area >= 1:
                expected += area * min(4, int(highest // 100) if highest >= 200 else 1)
    assert score.agatston == pytest.approx(expected * spacing[2] / 3, rel=1e-6)
    assert score.agatston > 50
    assert score.dense_mm3 > 0.95 * score.volume_mm3
