"""Answers decoded, packed and found again on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedmedseg.cardiac_ct.answers import LEAST_LOG, Found, found_in, label_of, log_probabilities
from fedmedseg.cardiac_ct.pseudo_labels import ScanLabels, load_index, load_labels, save_index, save_labels
from fedmedseg.core.state import SiteState


@pytest.fixture
def state(tmp_path: Path) -> SiteState:
    return SiteState(tmp_path, study="s", experiment="e" * 64, site="site-1", run="r")


def probabilities_of(label: np.ndarray, classes: int, sure: float = 0.9) -> torch.Tensor:
    """(C, X, Y, Z): ``sure`` of ``label``, the rest shared out."""
    one = torch.nn.functional.one_hot(torch.from_numpy(label.astype(np.int64)), classes).movedim(-1, 0)
    return one * sure + (1 - one) * (1 - sure) / (classes - 1)


def test_points_are_found_where_spheres_were_drawn_and_a_missing_one_shifts_nobody() -> None:
    points = np.array([[10.2, 11.0, 12.5], [np.nan] * 3, [20.0, 8.0, 9.0], [9.0, 22.0, 9.0], [22.0, 22.0, 20.0]])
    label = label_of(Found(points=points, mask=None, confidence=1.0), (32, 32, 32), 3.0)
    found = found_in(probabilities_of(label, 6), "hps", "spheres")
    assert found.points is not None
    assert np.isnan(found.points[1]).all()
    there = [0, 2, 3, 4]
    assert np.abs(found.points[there] - points[there]).max() < 0.3
    # the mean over five points of which one has none
    assert found.confidence == pytest.approx(0.9 * 4 / 5, abs=1e-3)


def test_a_mask_is_the_most_probable_class_and_an_empty_one_is_as_sure_as_nothing_is_there() -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    label[1, 2, 3] = 1
    found = found_in(probabilities_of(label, 2, 0.8), "calc", "spheres")
    assert found.mask is not None
    assert np.array_equal(found.mask, label)
    assert found.confidence == pytest.approx(0.8)
    empty = found_in(probabilities_of(label * 0, 2, 0.7), "calc", "spheres")
    assert empty.confidence == pytest.approx(0.7)


def test_what_is_saved_is_loaded_and_takes_a_bit_a_voxel(state: SiteState) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((5, 6, 7)) < 0.2).astype(np.uint8)
    points = np.array([[1.0, 2.0, 3.0], [np.nan] * 3])
    soft = log_probabilities(torch.softmax(torch.randn(2, 5, 6, 7), 0))
    labels = ScanLabels(
        kept={"ms": Found(points=points, mask=None, confidence=0.5), "calc": Found(None, mask, 0.75)},
        refused={"hps": "points missing"},
        soft={"calc": soft},
    )
    save_labels(state, "abc", labels, teachers="t1")
    loaded = load_labels(state, "abc", teachers="t1")
    assert loaded is not None
    np.testing.assert_array_equal(loaded.kept["ms"].points, points)
    np.testing.assert_array_equal(loaded.kept["calc"].mask, mask)
    assert (loaded.kept["ms"].confidence, loaded.kept["calc"].confidence) == (0.5, 0.75)
    assert loaded.refused == {"hps": "points missing"}
    assert torch.equal(loaded.soft["calc"], soft)
    assert state.load("pseudo_label_abc")["kept"]["calc"]["bits"][0].numel() == -(-mask.size // 8)


def test_labels_of_other_cnns_are_not_taken_for_these(state: SiteState) -> None:
    save_labels(state, "abc", ScanLabels(kept={}), teachers="t1")
    assert load_labels(state, "abc", teachers="t2") is None
    assert load_labels(state, "abc") is not None
    assert load_labels(state, "other") is None


def test_the_index_says_which_tasks_of_which_scan_were_kept(state: SiteState) -> None:
    assert load_index(state) is None
    save_index(state, {"a": {"ms", "calc"}, "b": set()}, teachers="t")
    assert load_index(state) == {"a": frozenset({"ms", "calc"}), "b": frozenset()}


def test_a_structure_map_of_several_classes_and_an_empty_one_come_back(state: SiteState) -> None:
    several = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    save_labels(
        state,
        "a",
        ScanLabels(kept={"heart": Found(None, several, 1.0), "calc": Found(None, several * 0, 1.0)}),
        teachers="t",
    )
    loaded = load_labels(state, "a")
    assert loaded is not None
    np.testing.assert_array_equal(loaded.kept["heart"].mask, several)
    assert not loaded.kept["calc"].mask.any()  # type: ignore[union-attr]


def test_softened_answers_are_kept_in_half_precision_and_bounded() -> None:
    kept = log_probabilities(torch.tensor([1.0, 0.0]))
    assert kept.dtype == torch.float16
    assert kept.tolist() == [0.0, LEAST_LOG]
