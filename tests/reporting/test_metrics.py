"""Dice and HD95 against numbers worked out by hand and against brute force over all pairs of surface voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from fedmedseg.core.errors import DataError
from fedmedseg.reporting.metrics import (
    CaseScore,
    StructureScore,
    diagonal,
    dice,
    hausdorff95,
    mean_dice,
    per_patient,
    score_mask,
    score_structures,
    summarise,
)


def mask(shape, *voxels):
    result = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        result[voxel] = True
    return result


def surface(volume):
    return volume & ~ndimage.binary_erosion(volume)


def hd95_over_all_pairs(first, second, spacing):
    a, b = (np.argwhere(surface(volume)) * np.asarray(spacing) for volume in (first, second))
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


def case(key, patient, **structures):
    return CaseScore(key=key, patient=patient, structures=structures)


def test_dice_of_two_and_three_voxels_with_one_in_common_is_two_fifths():
    first = mask((4, 4, 2), (0, 0, 0), (1, 0, 0))
    second = mask((4, 4, 2), (1, 0, 0), (2, 0, 0), (3, 0, 1))
    assert dice(first, second) == pytest.approx(2 * 1 / (2 + 3))


@pytest.mark.parametrize(
    ("first", "second", "spacing", "expected"),
    [
        ((0, 0, 0), (1, 0, 1), (2.0, 1.0, 5.0), math.sqrt(4 + 25)),
        ((0, 0, 0), (0, 3, 0), (2.0, 1.5, 8.0), 4.5),
        ((2, 2, 1), (2, 2, 1), (2.0, 1.5, 8.0), 0.0),
        ((0, 0, 0), (0, 0, 1), (1.0, 1.0, 8.0), 8.0),
    ],
)
def test_hd95_of_single_voxels_is_their_distance_in_mm(first, second, spacing, expected):
    shape = (4, 4, 2)
    assert hausdorff95(mask(shape, first), mask(shape, second), spacing=spacing) == pytest.approx(expected)


def test_hd95_takes_the_95th_percentile_of_the_worse_direction():
    # truth: one voxel; prediction: the same voxel and 20 more in a row, 1..20 voxels of 2 mm away
    shape = (24, 3, 1)
    truth = mask(shape, (0, 1, 0))
    prediction = mask(shape, *[(x, 1, 0) for x in range(21)])
    # distances 0, 2, ..., 40: position 0.95 x 20 = 19 of the sorted ones is 38
    assert hausdorff95(prediction, truth, spacing=(2.0, 1.0, 1.0)) == pytest.approx(38.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.25, 1.25, 8.0), (3.0, 0.7, 1.0)])
def test_hd95_equals_brute_force_on_random_blobs(seed, spacing):
    rng = np.random.default_rng(seed)
    blobs = [ndimage.gaussian_filter(rng.normal(size=(14, 12, 6)), 1.5) for _ in range(2)]
    first, second = (blob > np.percentile(blob, 80) for blob in blobs)
    expected = hd95_over_all_pairs(first, second, spacing)
    assert expected > 0
    assert hausdorff95(first, second, spacing=spacing) == pytest.approx(expected, rel=1e-5)


def test_hd95_equals_brute_force_in_two_dimensions_and_at_the_edge_of_the_image():
    first, second = np.zeros((9, 7), dtype=bool), np.zeros((9, 7), dtype=bool)
    first[:5, :4] = True
    second[3:, 2:] = True
    expected = hd95_over_all_pairs(first, second, (1.5, 0.5))
    assert hausdorff95(first, second, spacing=(1.5, 0.5)) == pytest.approx(expected)


def test_the_diagonal_of_3_4_2_voxels_of_1_1_6_mm_is_13_mm():
    assert diagonal((3, 4, 2), (1.0, 1.0, 6.0)) == pytest.approx(13.0)


@pytest.mark.parametrize("predicted", [True, False])
def test_a_structure_on_one_side_only_is_a_failure_with_dice_0_and_the_diagonal(predicted):
    shape = (3, 4, 2)
    something, nothing = mask(shape, (1, 1, 1)), mask(shape)
    pair = (something, nothing) if predicted else (nothing, something)
    score = score_mask(*pair, spacing=(1.0, 1.0, 6.0))
    assert (score.dice, score.failures) == (0.0, 1)
    assert score.hd95 == pytest.approx(13.0)


def test_a_structure_on_neither_side_is_not_counted():
    score = score_mask(mask((3, 3, 3)), mask((3, 3, 3)), spacing=(1.0, 1.0, 1.0))
    assert not score.counted
    assert math.isnan(score.hd95)
    assert score.failures == 0


def test_without_distances_only_dice_is_computed():
    volume = mask((3, 3, 3), (1, 1, 1))
    score = score_mask(volume, volume, spacing=(1.0, 1.0, 1.0), distances=False)
    assert score.dice == 1.0
    assert math.isnan(score.hd95)


def test_structures_that_a_case_does_not_mark_are_skipped():
    truth = np.zeros((4, 4, 1), dtype=np.uint8)
    truth[0, 0] = 1
    prediction = truth.copy()
    prediction[3, 3] = 2
    labels = {1: "cavity", 2: "wall"}
    spacing = (1.0, 1.0, 1.0)
    assert score_structures(prediction, truth, spacing=spacing, labels=labels)["wall"].failures == 1
    marked = score_structures(prediction, truth, spacing=spacing, labels=labels, annotated=(1,))
    assert list(marked) == ["cavity"]
    assert marked["cavity"] == StructureScore(dice=1.0, hd95=0.0)


@pytest.mark.parametrize(
    ("shape", "spacing", "field"),
    [((4, 4, 2), (1.0, 1.0, 1.0), "prediction"), ((4, 4, 1), (1.0, 1.0), "spacing"), ((4, 4, 1), (1, 1, 0), "spacing")],
)
def test_another_grid_or_a_wrong_spacing_is_refused(shape, spacing, field):
    with pytest.raises(DataError) as caught:
        score_structures(np.zeros(shape, np.uint8), np.zeros((4, 4, 1), np.uint8), spacing=spacing, labels={1: "a"})
    assert caught.value.field == field


def test_volumes_of_one_patient_are_averaged_before_patients_are():
    scores = [
        case("k1", "p1", lv=StructureScore(0.9, 2.0)),
        case("k2", "p1", lv=StructureScore(0.5, 6.0, failures=1)),
        case("k3", "p2", lv=StructureScore(0.1, 10.0)),
    ]
    first, second = per_patient(scores)
    assert first.patient == first.key == "p1"
    assert first.structures["lv"].dice == pytest.approx(0.7)
    assert first.structures["lv"].hd95 == pytest.approx(4.0)
    assert first.structures["lv"].failures == 1
    # over volumes it would be 0.5
    assert mean_dice([first, second]) == pytest.approx((0.7 + 0.1) / 2)


def test_a_volume_that_does_not_count_a_structure_leaves_the_patients_mean_alone():
    scores = [
        case("k1", "p1", lv=StructureScore(0.8, 3.0), rv=StructureScore(math.nan, math.nan)),
        case("k2", "p1", lv=StructureScore(math.nan, math.nan)),
    ]
    (patient,) = per_patient(scores)
    assert patient.structures["lv"] == StructureScore(0.8, 3.0, 0)
    assert not patient.structures["rv"].counted


def test_summary_has_mean_sample_sd_count_and_failures():
    cases = [
        case("k1", "p1", lv=StructureScore(0.6, 1.0)),
        case("k2", "p2", lv=StructureScore(1.0, 3.0)),
        case("k3", "p3", lv=StructureScore(0.0, 11.0, failures=1), rv=StructureScore(math.nan, math.nan)),
    ]
    lv, rv = summarise({"personal": cases})
    assert (lv.model, lv.structure, lv.n, lv.failures) == ("personal", "lv", 3, 1)
    assert lv.dice == pytest.approx(1.6 / 3)
    # mean 8/15; squared deviations (1/15)^2, (7/15)^2, (8/15)^2 = 0.004444, 0.217778, 0.284444
    assert lv.dice_sd == pytest.approx(math.sqrt((0.0044444 + 0.2177778 + 0.2844444) / 2), abs=1e-6)
    assert lv.hd95 == pytest.approx(5.0)
    assert lv.hd95_sd == pytest.approx(math.sqrt((16 + 4 + 36) / 2))
    assert rv.n == 0
    assert math.isnan(rv.dice)


def test_the_spread_of_one_case_is_not_a_number():
    (row,) = summarise({"m": [case("k", "p", lv=StructureScore(0.6, 1.0))]})
    assert row.n == 1
    assert math.isnan(row.dice_sd)


def test_mean_dice_weighs_structures_equally_and_is_nan_without_any():
    cases = [
        case("k1", "p1", lv=StructureScore(1.0, 0.0), rv=StructureScore(0.2, 0.0)),
        case("k2", "p2", lv=StructureScore(0.6, 0.0)),
    ]
    assert mean_dice(cases) == pytest.approx((0.8 + 0.2) / 2)
    assert math.isnan(mean_dice([]))
