"""Polygons become masks as an independent point-in-polygon test says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from fedmedseg.core.errors import DataError
from fedmedseg.data.importers.contours import area, fill, read_contour


@pytest.mark.parametrize("seed", range(6))
def test_a_random_star_is_filled_like_a_brute_force_point_in_polygon_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 17))
    radii = rng.uniform(3, 14, 17)
    points = np.stack([16 + radii * np.cos(angles), 13 + radii * np.sin(angles)], axis=1)
    x, y = np.mgrid[0:30, 0:28]
    expected = Outline(np.vstack([points, points[:1]])).contains_points(np.stack([x.ravel(), y.ravel()], 1))
    np.testing.assert_array_equal(fill(points, (30, 28)), expected.reshape(30, 28))


def test_a_box_through_pixel_edges_fills_exactly_its_pixels_in_either_direction() -> None:
    box = np.array([[1.5, 0.5], [4.5, 0.5], [4.5, 2.5], [1.5, 2.5]])
    expected = np.zeros((6, 5), bool)
    expected[2:5, 1:3] = True
    np.testing.assert_array_equal(fill(box, (6, 5)), expected)
    np.testing.assert_array_equal(fill(box[::-1], (6, 5)), expected)


def test_neighbours_with_an_edge_on_pixel_centres_share_no_pixel_and_leave_none_out() -> None:
    left = np.array([[0.0, -0.5], [3.0, -0.5], [3.0, 4.5], [0.0, 4.5]])
    right = left + np.array([3.0, 0.0])
    both = fill(left, (8, 5)).astype(int) + fill(right, (8, 5))
    assert both.max() == 1
    assert both[:6].min() == 1


def test_what_lies_outside_the_image_is_cut_off() -> None:
    assert fill(np.array([[-9.0, -9.0], [9.0, -9.0], [9.0, 9.0], [-9.0, 9.0]]), (3, 2)).all()


def test_the_area_of_a_triangle() -> None:
    assert area(np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])) == 6.0


@pytest.mark.parametrize("text", ["1 2\n3 4\n", "1 2\n3 4\n5\n", "1 2\n3 4\n5 nan\n", "a b\nc d\ne f\n", ""])
def test_a_damaged_contour_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "IM-0001-0001-icontour-manual.txt"
    path.write_text(text)
    with pytest.raises(DataError):
        read_contour(path)
