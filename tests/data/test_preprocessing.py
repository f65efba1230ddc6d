"""Intensities by hand: what a study's ``data.intensity`` and ``data.longest_edge`` do to a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.data_settings import DataSection
from fedmedseg.data.datalist import Case
from fedmedseg.data.preprocessing import normalise, prepare_image, prepare_label


def data(**changes: Any) -> DataSection:
    return DataSection(role="cmr", modality="mr", spatial_dims=3, labels={1: "one"}, **{"crop": (8, 8, 2), **changes})


def ramp() -> np.ndarray:
    """101 voxels 0, 1, ..., 100: the 96th percentile is 96."""
    return np.arange(101, dtype=np.float32).reshape(101, 1, 1)


def test_capped_intensities_end_at_the_96th_percentile_and_are_scored_over_the_whole_volume() -> None:
    seen, _ = normalise(ramp(), data(intensity="capped"))
    capped = np.minimum(np.arange(101.0), 96.0)
    np.testing.assert_allclose(seen.ravel(), (capped - capped.mean()) / capped.std(), atol=1e-5)
    assert (seen.ravel()[96:] == seen.max()).all()
    assert float(seen.mean()) == pytest.approx(0.0, abs=1e-5)


def test_uncapped_intensities_are_scored_over_what_is_not_air() -> None:
    """Air is what lies below a tenth of the way from the 1st percentile (1) to the 99th (99): below 10.8."""
    seen, tissue = normalise(ramp(), data())
    tissued = np.arange(11.0, 101.0)
    np.testing.assert_allclose(seen.ravel(), (np.arange(101.0) - tissued.mean()) / tissued.std(), atol=1e-5)
    assert tissue == pytest.approx((10.8 - tissued.mean()) / tissued.std(), abs=1e-5)


def test_one_bright_voxel_is_clipped_at_five_deviations_and_capped_at_the_others_brightness() -> None:
    image = np.random.default_rng(1).normal(100.0, 10.0, size=(10, 10, 10)).astype(np.float32)
    image[0, 0, 0] = 10_000.0
    assert normalise(image, data())[0].max() == 5.0
    # of a thousand voxels forty are as bright: 1.75 deviations of a normal distribution
    assert normalise(image, data(intensity="capped"))[0].max() == pytest.approx(1.8, abs=0.2)


@pytest.mark.parametrize(("edge", "shape"), [(None, (20, 12, 3)), (40, (40, 24, 3)), (10, (10, 8, 3))])
def test_the_longest_edge_scales_image_and_label_in_plane_alone(
    tmp_path: Path, edge: int | None, shape: tuple[int, int, int]
) -> None:
    """20 x 12 x 3 voxels; at an edge of 10 the shorter side has 6, which are padded to the crop's 8."""
    rng = np.random.default_rng(1)
    label = np.zeros((20, 12, 3), dtype=np.uint8)
    label[:10] = 1
    image = (100 * label + rng.normal(size=label.shape)).astype(np.float32)
    for name, array in (("i", image), ("l", label)):
        nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 9.0, 1.0])), tmp_path / f"{name}.nii.gz")
    case = Case(image=tmp_path / "i.nii.gz", label=tmp_path / "l.nii.gz", patient="p", annotated_labels=None, key="k")
    made = prepare_image(case, data(longest_edge=edge))
    assert made.arrays["image"].shape == shape
    assert made.meta["spacing"][2] == pytest.approx(9.0)
    drawn = prepare_label(case, made.meta).arrays["label"]
    assert drawn.shape == shape
    bright = made.arrays["image"] > made.meta["tissue"]
    assert (bright == (drawn == 1)).mean() > 0.95, "image and label stay together"
