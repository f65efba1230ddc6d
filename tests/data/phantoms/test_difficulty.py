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


def test_rules_without_a_network_by_hand(difficulty):
    """Two scans whose point lies 2 voxels of 3 mm apart: on average 3 mm off; where it keeps to what is bright, 0."""
    from landmark_difficulty import bright_place, mean_place

    def scan(shift):
        image = np.zeros((21, 21, 21), np.float32)
        image[8 + shift : 13 + shift, 5:16, 5:16] = 1.0
        points = np.full((7, 3), 10.0) + np.array([shift, 0, 0])
        return difficulty.Volume(image=image, label=image > 0, points=points, spacing=np.array([3.0, 1.0, 1.0]))

    scans = [scan(0), scan(2)]
    assert mean_place(scans, scans)["mean"] == pytest.approx(3.0)
    assert bright_place(scans, scans) == {**dict.fromkeys(difficulty.LANDMARKS, 0.0), "mean": 0.0}


def test_no_rule_without_a_network_places_the_points_of_a_root(difficulty, tmp_path, monkeypatch):
    monkeypatch.setattr(difficulty, "SITES", 1)
    monkeypatch.setitem(difficulty.COUNTS, "cardiac_ct", {"training": 3, "test": 2})
    rules = difficulty.measure_rules("cardiac_ct", tmp_path)["landmark_rules"]
    assert rules["best_of_a_site_mm"] >= difficulty.LANDMARK_BOUNDS["rule_error_at_least_mm"]


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
        assert result["landmark_rules"]["best_of_a_site_mm"] >= difficulty.LANDMARK_BOUNDS["rule_error_at_least_mm"]
        assert found["pooled_mm"] < difficulty.LANDMARK_BOUNDS["pooled_error_below_mm"]
        assert found["ratio"] >= difficulty.LANDMARK_BOUNDS["error_ratio_elsewhere_at_least"]
