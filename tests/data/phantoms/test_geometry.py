"""Implicit surfaces: signs, distances and partial volume, worked out by hand."""

import itertools

import numpy as np
import pytest

from fedmedseg.data.phantoms import geometry as g


def test_grid_is_centred_and_spaced_in_mm():
    x, y, z = g.grid((4, 3, 2), (2.0, 1.0, 8.0))
    assert x.shape == (4, 3, 2)
    np.testing.assert_allclose(x[:, 0, 0], [-3, -1, 1, 3])
    np.testing.assert_allclose(y[0, :, 0], [-1, 0, 1])
    np.testing.assert_allclose(z[0, 0], [-4, 4])


def test_middle_subslice_lies_at_the_slice_centre():
    z = g.grid((2, 2, 2), (1.0, 1.0, 9.0), subslices=3)[2][0, 0]
    np.testing.assert_allclose(z, [-7.5, -4.5, -1.5, 1.5, 4.5, 7.5])
    np.testing.assert_allclose(z[1::3], g.grid((2, 2, 2), (1.0, 1.0, 9.0))[2][0, 0])


def test_sphere_distance_equals_closed_form():
    points = g.grid((9, 9, 9), (1.0, 1.0, 1.0))
    exact = np.sqrt(sum(p**2 for p in points)) - 3
    exact[4, 4, 4] = np.nan  # the centre, where the approximation divides by zero
    found = g.ellipsoid(points, (0, 0, 0), (3, 3, 3))
    np.testing.assert_allclose(found[~np.isnan(exact)], exact[~np.isnan(exact)], atol=1e-4)


def test_ellipsoid_turned_by_90_degrees_swaps_its_axes():
    points = g.grid((11, 11, 3), (1.0, 1.0, 1.0))
    turned = g.ellipsoid(points, (0, 0, 0), (4, 2, 3), turn=90) <= 0
    swapped = g.ellipsoid(points, (0, 0, 0), (2, 4, 3)) <= 0
    np.testing.assert_array_equal(turned, swapped)
    assert turned.any()


def test_tube_equals_brute_force_over_dense_points_of_the_path():
    points = g.grid((7, 7, 7), (2.0, 2.0, 2.0))
    path = np.array([[-4.0, 0, 1], [0, 3, 0], [5, 3, -2]])
    dense = np.concatenate([np.linspace(a, b, 2001) for a, b in itertools.pairwise(path)])
    voxels = np.stack(points, axis=-1).reshape(-1, 3)
    brute = np.array([np.sqrt(((dense - v) ** 2).sum(axis=1)).min() for v in voxels]) - 1.5
    np.testing.assert_allclose(g.tube(points, path, 1.5).ravel(), brute, atol=5e-3)


@pytest.mark.parametrize(("distance", "share"), [(-3.0, 1.0), (-1.0, 0.75), (0.0, 0.5), (1.0, 0.25), (3.0, 0.0)])
def test_cover_is_linear_at_the_surface(distance, share):
    assert g.cover(np.array([distance], dtype=np.float32), 2.0)[0] == pytest.approx(share)


def test_canvas_lays_later_tissue_over_image_and_label():
    points = g.grid((5, 1, 1), (1.0, 1.0, 1.0))
    canvas = g.Canvas(points=points, background=0.0, softness=0.01)
    canvas.add(points[0] - 0.5, 10.0, label=1)  # voxels 0..2
    canvas.add(points[0] + 0.5, 20.0)  # voxels 0..1, unlabelled
    np.testing.assert_allclose(canvas.image[:, 0, 0], [20, 20, 10, 0, 0])
    np.testing.assert_array_equal(canvas.label[:, 0, 0], [0, 0, 1, 0, 0])


def test_through_plane_mean_averages_inside_each_slice():
    volume = np.array([1.0, 2, 6, 0, 0, 3], dtype=np.float32).reshape(1, 1, 6)
    np.testing.assert_allclose(g.through_plane_mean(volume, 3)[0, 0], [3, 1])


def test_smooth_noise_has_zero_mean_and_unit_spread():
    noise = g.smooth_noise(np.random.default_rng(1), (20, 18, 6), (5, 5, 3))
    assert noise.shape == (20, 18, 6)
    assert abs(float(noise.mean())) < 1e-5
    assert float(noise.std()) == pytest.approx(1, abs=1e-4)
    steps = np.abs(np.diff(noise, axis=0)).mean()
    assert steps < 0.5  # white noise of unit spread would step by 1.13 on average


def test_warp_moves_points_by_about_its_amplitude():
    points = g.grid((12, 12, 12), (10.0, 10.0, 10.0))
    bent = g.warp(points, np.random.default_rng(2), amplitude=3.0, wavelength=60)
    moved = np.sqrt(np.mean([((b - p) ** 2).mean() for b, p in zip(bent, points, strict=True)]))
    assert 0.5 < moved < 9
