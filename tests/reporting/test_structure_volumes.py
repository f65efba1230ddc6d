"""Volumes and ejection fraction by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedmedseg.core.errors import DataError
from fedmedseg.reporting.structure_volumes import Ventricle, structure_volumes


def test_a_structures_volume_is_its_voxels_times_a_voxels() -> None:
    """1.25 x 1.25 x 8 mm are 12.5 mm3: 16 voxels are 0.2 ml."""
    labels = np.zeros((8, 4, 2), np.uint8)
    labels[:4, :, 0], labels[4, 0, 1] = 1, 3
    found = structure_volumes(labels, {1: "cavity", 2: "wall", 3: "other"}, np.diag([1.25, -1.25, 8.0, 1.0]))
    assert {name: one.voxels for name, one in found.items()} == {"cavity": 16, "wall": 0, "other": 1}
    assert [one.ml for one in found.values()] == pytest.approx([0.2, 0.0, 0.0125])


def test_turned_and_sheared_grids_count_by_their_determinant() -> None:
    """A gantry tilt shifts slices against each other: the voxel stays 2 x 2 x 5 mm, its third column is longer."""
    tilted = np.array([[0, -2, 1, 5], [2, 0, 3, 5], [0, 0, 5, 5], [0, 0, 0, 1.0]])
    found = structure_volumes(np.ones((10, 5, 1), np.uint8), {1: "x"}, tilted)
    assert found["x"].ml == pytest.approx(50 * 20 / 1000)
    with pytest.raises(DataError, match="volume"):
        structure_volumes(np.ones((1, 1, 1), np.uint8), {1: "x"}, np.diag([1.0, 1.0, 0.0, 1.0]))


def test_a_structure_that_is_missing_or_in_pieces_is_doubtful() -> None:
    """By hand: 12 voxels and 3 that touch them by an edge alone are 2 pieces, the larger 80 % of all; 1 crumb beside
    12 leaves 92 %, which is one organ."""
    labels = np.zeros((8, 8, 1), np.uint8)
    labels[:3, :4], labels[3, 4:7] = 1, 1
    labels[5:, :4], labels[7, 7] = 2, 2
    found = structure_volumes(labels, {1: "cavity", 2: "wall", 4: "valve"}, np.eye(4))
    assert [(one.pieces, one.voxels) for one in found.values()] == [(2, 15), (2, 13), (0, 0)]
    assert [one.doubt for one in found.values()] == ["in 2 pieces, the largest 80% of it", None, "not found"]


def test_what_lies_in_several_places_by_nature_is_doubtful_only_beyond_them() -> None:
    """By hand: 6, 3 and 1 voxels; the two largest pieces are 90 % of them, and of 6, 3 and 2 they are 82 %."""
    labels = np.zeros((8, 8, 1), np.uint8)
    labels[0, :6], labels[2, :3], labels[4, 0] = 1, 1, 1

    def doubt(natural: int | None) -> str | None:
        return structure_volumes(labels, {1: "tree"}, np.eye(4), natural={"tree": natural})["tree"].doubt

    assert (doubt(None), doubt(2)) == (None, None)
    assert doubt(1) == "in 3 pieces, the largest 60% of it"
    labels[4, 1] = 1
    assert doubt(2) == "in 3 pieces, the 2 largest 82% of it"
    labels[:] = 0
    assert doubt(None) == "not found"


def test_ejection_fraction_is_the_stroke_volume_in_the_end_diastolic() -> None:
    heart = Ventricle(diastolic_ml=120.0, systolic_ml=48.0)
    assert (heart.stroke_ml, heart.ejection_fraction, heart.doubt) == (72.0, 60.0, None)
    doubtful = Ventricle(diastolic_ml=120.0, systolic_ml=48.0, doubts=("end-diastole: in 3 pieces", "end-systole: x"))
    assert doubtful.doubt == "end-diastole: in 3 pieces; end-systole: x", (
        "an ejection fraction is as good as its volumes"
    )


def test_figures_that_cannot_be_are_told() -> None:
    exchanged = Ventricle(diastolic_ml=48.0, systolic_ml=120.0)
    assert exchanged.ejection_fraction == pytest.approx(-150.0)
    assert "changed places" in str(exchanged.doubt)
    both = Ventricle(diastolic_ml=48.0, systolic_ml=120.0, doubts=("end-systole: in 9 pieces",))
    assert str(both.doubt).endswith("the frames may have changed places; end-systole: in 9 pieces")
    empty = Ventricle(diastolic_ml=0.0, systolic_ml=0.0)
    assert math.isnan(empty.ejection_fraction)
    assert "no cavity" in str(empty.doubt)
