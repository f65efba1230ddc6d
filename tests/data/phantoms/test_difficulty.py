"""Phantoms stay hard for thresholds, differ between sites, and are learned by pooled training."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FAMILIES = ("cine_mr", "late_enhancement_mr", "abdominal_ct", "cardiac_ct")


@pytest.fixture(scope="module")
def difficulty():
    folder = str(Path(__file__).parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("phantom_difficulty")
    sys.path.remove(folder)


def test_dice_by_hand(difficulty):
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert difficulty.dice(a, b) == 0.5
    assert difficulty.dice(a, a) == 1.0
    assert difficulty.dice(~a & a, ~a & a) == 1.0


def test_threshold_baseline_solves_a_lone_bright_box(difficulty):
    image = np.zeros((8, 8, 4), np.float32)
    image[2:5, 2:5, 1:3] = 1.0
    volume = difficulty.Volume(
        image=image, label=(image > 0).astype(np.uint8), points=np.zeros((0, 3)), spacing=np.ones(3)
    )
    site = {"training": [volume], "test": [volume]}
    assert difficulty.threshold_dice(site, 2) == {1: 1.0}


def test_expected_place_finds_the_centre_of_a_heat_map(difficulty):
    import torch
    from landmark_difficulty import expected_place, heat_maps

    points = torch.tensor([[[3.0, 4.0, 2.5]]])
    heat = heat_maps(points, (9, 9, 7)).log().reshape(1, 1, 9, 9, 7)
    np.testing.assert_allclose(expected_place(heat).numpy(), points.numpy(), atol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_threshold_and_largest_component_fail(family, difficulty, tmp_path, monkeypatch):
    monkeypatch.setattr(difficulty, "SITES", 1)
    monkeypatch.setitem(difficulty.COUNTS, family, {"training": 3, "test": 2})
    scores = difficulty.measure_threshold(family, tmp_path)
    assert scores["site-1"]["mean"] < difficulty.BOUNDS["threshold_below"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_of_difficulty_hold(family, difficulty, tmp_path):
    result = difficulty.measure(family, tmp_path)
    summary = result["summary"]
    assert summary["threshold_worst"] < difficulty.BOUNDS["threshold_below"]
    assert summary["loss_elsewhere"] >= difficulty.BOUNDS["loss_elsewhere_at_least"]
    assert summary["pooled"] >= difficulty.BOUNDS["pooled_at_least"]
    if family == "cardiac_ct":
        found = result["landmark_summary"]
        assert found["pooled_mm"] < difficulty.LANDMARK_BOUNDS["pooled_error_below_mm"]
        assert found["ratio"] >= difficulty.LANDMARK_BOUNDS["error_ratio_elsewhere_at_least"]
