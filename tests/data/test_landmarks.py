"""Landmark files: what they may say, where the points lie, and that a missing one never moves another."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedmedseg.data.checks import CaseRejected
from fedmedseg.data.geometry import Grid
from fedmedseg.data.landmarks import NAMES, as_rows, check_landmarks, read_landmarks, to_voxel, to_world
from fedmedseg.data.phantoms.style import LANDMARKS


def file(folder, content):
    path = folder / "points.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_names_are_those_of_the_phantoms():
    assert NAMES == LANDMARKS


def test_null_is_a_point_that_is_not_in_the_scan_and_a_synonym_the_same_point(tmp_path):
    found = read_landmarks(file(tmp_path, {"ACC": [1, 2.5, -3], "RCO": None, "LCO": [0, 0, 0]}))
    assert found == {"NCC": (1.0, 2.5, -3.0), "RCA": None, "LCA": (0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "no JSON"),
        ("[1, 2]", "no JSON object"),
        ({"RCCC": [1, 2, 3]}, "unknown name"),
        ({"NCC": [1, 2, 3], "ACC": [1, 2, 3]}, "under two names"),
        ({"RCC": [1, 2]}, "without three coordinates"),
        ({"RCC": "1 2 3"}, "without three coordinates"),
        ({"RCC": [1, True, 3]}, "without three coordinates"),
        ('{"RCC": [1, NaN, 3]}', "not finite"),
        ('{"RCC": [1, 1e999, 3]}', "not finite"),
        ("[" * 100000, "no JSON"),
    ],
)
def test_a_damaged_file_is_refused_with_its_reason(content, reason, tmp_path):
    with pytest.raises(CaseRejected, match=reason):
        read_landmarks(file(tmp_path, content))


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(CaseRejected, match="cannot be read"):
        read_landmarks(tmp_path / "none.json")


def test_missing_points_are_rows_of_nan_and_the_others_keep_their_places():
    rows = as_rows({"RCC": (1.0, 2.0, 3.0), "LCC": None, "LCA": (7.0, 8.0, 9.0)}, ("RCC", "LCC", "NCC", "RCA", "LCA"))
    assert rows.shape == (5, 3)
    assert rows[0].tolist() == [1, 2, 3]
    assert rows[4].tolist() == [7, 8, 9]
    assert np.isnan(rows[1:4]).all()


def test_world_and_voxels_lead_to_each_other_by_hand():
    affine = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -4], [0, 0, 3.0, 0.5], [0, 0, 0, 1]])
    points = np.array([[4.0, -1.0, 6.5], [np.nan] * 3])
    voxels = to_voxel(points, affine)
    np.testing.assert_allclose(voxels[0], [3, 2, 2])
    assert np.isnan(voxels[1]).all()
    np.testing.assert_allclose(to_world(voxels, affine), points)


def test_a_point_outside_the_image_is_refused_and_one_in_the_outermost_half_voxel_is_not(tmp_path):
    grid = Grid((4, 4, 4), np.eye(4))
    check_landmarks(file(tmp_path, {"RCC": [-0.4, 3.4, 0], "MS1": None}), grid)
    with pytest.raises(CaseRejected, match="outside the image"):
        check_landmarks(file(tmp_path, {"RCC": [0, 3.6, 0]}), grid)
