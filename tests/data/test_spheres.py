"""Points as spheres and as heat maps: drawn, read back, and missing where they are missing."""

from __future__ import annotations

import numpy as np
import pytest

from fedmedseg.data.heatmaps import decode_heatmaps, draw_heatmaps
from fedmedseg.data.spheres import decode_confident, decode_spheres, draw_spheres

SHAPE = (40, 36, 32)
MISSING = [np.nan] * 3


def test_a_sphere_on_a_voxel_centre_has_257_voxels():
    label = draw_spheres([[20, 18, 16]], SHAPE)
    assert int((label == 1).sum()) == 257
    assert label.dtype == np.uint8


def test_a_small_sphere_by_hand():
    # within 1.5 voxels of a centre: itself, 6 that share a face, 12 that share an edge
    assert int(draw_spheres([[5, 5, 5]], (11, 11, 11), radius=1.5).sum()) == 19
    # a quarter of a voxel off: radius 0.5 reaches the one centre only
    assert np.argwhere(draw_spheres([[5.25, 5, 5]], (11, 11, 11), radius=0.5)).tolist() == [[5, 5, 5]]


def test_random_points_come_back_within_a_fifth_of_a_millimetre():
    rng = np.random.default_rng(7)
    errors = []
    for _ in range(200):
        point = rng.uniform(5, np.array(SHAPE) - 6)
        errors.append(np.linalg.norm(decode_spheres(draw_spheres([point], SHAPE), 1)[0] - point))
    assert np.mean(errors) < 0.06
    assert max(errors) < 0.2


def test_a_missing_point_draws_nothing_and_shifts_no_other():
    points = np.array([[8.0, 8, 8], MISSING, [30, 28, 24]])
    label = draw_spheres(points, SHAPE)
    assert set(np.unique(label)) == {0, 1, 3}
    decoded = decode_spheres(label, 3)
    np.testing.assert_allclose(decoded[[0, 2]], points[[0, 2]])
    assert np.isnan(decoded[1]).all()


def test_where_spheres_overlap_the_later_point_has_the_voxel():
    label = draw_spheres([[15, 15, 15], [18, 15, 15]], SHAPE)
    assert int((label == 2).sum()) == 257
    assert 0 < int((label == 1).sum()) < 257
    assert label[17, 15, 15] == 2


def test_a_sphere_at_the_border_is_cut_and_one_outside_leaves_nothing():
    assert int(draw_spheres([[0, 18, 16]], SHAPE).sum()) == (257 + 49) // 2  # half, and the whole middle plane
    assert not draw_spheres([[-20, 18, 16], [100, 18, 16]], SHAPE).any()


def test_the_largest_component_decides_and_corners_connect():
    label = draw_spheres([[10, 10, 10]], SHAPE)
    label[30, 30, 30] = 1
    np.testing.assert_allclose(decode_spheres(label, 1)[0], [10, 10, 10])
    two = np.zeros((6, 6, 6), dtype=np.uint8)
    two[1, 1, 1] = two[2, 2, 2] = 1
    np.testing.assert_allclose(decode_spheres(two, 1)[0], [1.5, 1.5, 1.5])


def test_confidence_is_the_mean_probability_over_what_the_point_was_read_from():
    probabilities = np.zeros((3, 8, 8, 8), dtype=np.float32)
    probabilities[0] = 0.5
    probabilities[1, 2, 2, 2], probabilities[1, 3, 2, 2] = 0.6, 0.8
    probabilities[2, 6, 6, 6] = 0.4  # background is likelier
    decoded = decode_confident(probabilities)
    np.testing.assert_allclose(decoded.points[0], [2.5, 2, 2])
    assert np.isnan(decoded.points[1]).all()
    np.testing.assert_allclose(decoded.confidence, [0.7, 0.0], atol=1e-6)
    assert decoded.voxels.tolist() == [2, 0]
    assert decoded.found.tolist() == [True, False]


def test_heat_maps_come_back_and_have_their_peak_at_the_point():
    rng = np.random.default_rng(3)
    points = rng.uniform(6, np.array(SHAPE) - 7, size=(20, 3))
    points[4] = MISSING
    maps = draw_heatmaps(points, SHAPE)
    assert maps.shape == (20, *SHAPE)
    assert not maps[4].any()
    decoded = decode_heatmaps(maps)
    assert decoded.found.tolist() == [place != 4 for place in range(20)]
    assert np.nanmax(np.linalg.norm(decoded.points - points, axis=1)) < 0.2
    assert decoded.confidence[4] == 0


def test_a_heat_map_has_its_value_at_one_sigma_by_hand():
    one = draw_heatmaps([[10, 10, 10]], (21, 21, 21), sigma=2.0)[0]
    assert one[10, 10, 10] == pytest.approx(1.0)
    assert one[12, 10, 10] == pytest.approx(np.exp(-0.5))
    assert one[12, 12, 10] == pytest.approx(np.exp(-1.0))


def test_a_heat_map_without_a_peak_shows_no_point_and_the_threshold_is_heeded():
    faint = 0.2 * draw_heatmaps([[10, 10, 10]], (21, 21, 21))
    assert not decode_heatmaps(faint).found.any()
    assert decode_heatmaps(faint, threshold=0.1).found.all()


def test_points_close_together_stay_apart_as_heat_maps():
    points = np.array([[15.0, 15, 15], [18, 15, 15]])
    np.testing.assert_allclose(decode_heatmaps(draw_heatmaps(points, SHAPE)).points, points, atol=0.05)
    # as spheres the first is pushed away from the second
    assert np.linalg.norm(decode_spheres(draw_spheres(points, SHAPE), 2)[0] - points[0]) > 0.5
