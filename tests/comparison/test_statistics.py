"""Statistics of a comparison against numbers by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, wilcoxon

from fedmedseg.comparison.patients import plain
from fedmedseg.comparison.statistics import compare, holm, interval, mean_of_sites, over_seeds, patient_array
from fedmedseg.reporting.metrics import CaseScore, score_structures

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "corrected"),
    [
        ([0.01], [0.01]),
        # rising 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, none below the one before
        ([0.01, 0.04, 0.03, 0.02], [0.04, 0.06, 0.06, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, NAN, 0.01], [0.02, NAN, 0.02]),
        ([NAN], [NAN]),
        ([], []),
    ],
)
def test_holm_by_hand(values: list[float], corrected: list[float]) -> None:
    np.testing.assert_allclose(holm(values), corrected)


def test_means_go_over_patients_then_structures_then_sites() -> None:
    # structure 1: 0.5 of two patients; structure 2: 0.9 of one; site 0.7. The other site 0.1
    first = np.array([[0.4, 0.9], [0.6, NAN]])
    second = np.array([[0.1, 0.1]])
    assert mean_of_sites([first, second]) == pytest.approx(0.4)


def test_a_site_of_one_patient_is_drawn_as_it_is_and_equal_patients_leave_no_spread() -> None:
    assert interval([np.array([[0.2]]), np.array([[0.6], [0.6]])]) == pytest.approx((0.4, 0.4))


def test_an_interval_is_the_same_for_the_same_seed_and_near_scipys() -> None:
    rng = np.random.default_rng(0)
    sites = [rng.normal(0.7, 0.1, 30), rng.normal(0.5, 0.05, 20)]
    ours = interval([one[:, None] for one in sites], seed=2, resamples=9999)
    assert ours == interval([one[:, None] for one in sites], seed=2, resamples=9999)
    assert ours != interval([one[:, None] for one in sites], seed=3, resamples=9999)
    other = bootstrap(
        sites, lambda a, b, axis: (a.mean(axis=axis) + b.mean(axis=axis)) / 2, method="percentile", rng=1
    ).confidence_interval
    np.testing.assert_allclose(ours, other, atol=2e-3)


def test_patients_without_a_structure_are_nan_and_seeds_are_averaged_where_they_count() -> None:
    patients = [{"heart": {"dice": 0.5}}, {"heart": {"dice": None}}, {}]
    first = patient_array(patients, ["heart", "lung"], "dice")
    np.testing.assert_array_equal(first, [[0.5, NAN], [NAN, NAN], [NAN, NAN]])
    second = np.array([[0.7, NAN], [0.2, NAN], [NAN, NAN]])
    np.testing.assert_allclose(over_seeds([first, second]), [[0.6, NAN], [0.2, NAN], [NAN, NAN]])
    assert patient_array([], ["heart"], "dice").shape == (0, 1)


def test_a_structure_that_the_truth_has_not_counts_where_it_was_predicted_and_nowhere_else() -> None:
    """From masks to the table's figures: as ``reporting.metrics`` defines them."""
    there, nothing = np.zeros((4, 4, 1), dtype=np.uint8), np.zeros((4, 4, 1), dtype=np.uint8)
    there[:2] = 1
    ghost = there.copy()
    ghost[3, 3] = 2
    labels, spacing = {1: "heart", 2: "lung"}, (1.0, 1.0, 1.0)

    def of(prediction: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float | None]]:
        structures = score_structures(prediction, truth, spacing=spacing, labels=labels)
        return plain(CaseScore(key="", patient="", structures=structures))

    absent, predicted, missed = of(there, there), of(ghost, there), of(there, ghost)
    diagonal = round(math.sqrt(4**2 + 4**2 + 1), 3)
    dice = patient_array([absent, predicted, missed], ["heart", "lung"], "dice")
    np.testing.assert_array_equal(dice, [[1.0, NAN], [1.0, 0.0], [1.0, 0.0]])
    hd95 = patient_array([absent, predicted, missed], ["heart", "lung"], "hd95")
    np.testing.assert_array_equal(hd95, [[0.0, NAN], [0.0, diagonal], [0.0, diagonal]])
    # a ghost costs the method that saw it: (1 + 0) / 2 against 1
    found, _ = compare([dice[1:2]], [dice[:1]])
    assert (found.n, found.difference) == (1, pytest.approx(-0.5))
    # where nothing else counts there is no pair, and the mean has it
    alone = patient_array([of(ghost, nothing), of(nothing, nothing)], ["lung"], "dice")
    np.testing.assert_array_equal(alone, [[0.0], [NAN]])
    assert compare([alone[:1]], [alone[1:]])[0].n == 0
    assert mean_of_sites([alone]) == 0.0


def test_methods_are_compared_patient_by_patient_over_all_sites() -> None:
    first = [np.array([[0.5, 0.7], [0.4, NAN]]), np.array([[0.9, 0.9], [0.3, 0.5], [NAN, NAN]])]
    second = [np.array([[0.4, 0.6], [0.5, NAN]]), np.array([[0.5, 0.5], [0.1, 0.1], [0.9, 0.9]])]
    found, (low, high) = compare(first, second)
    differences = [0.1, -0.1, 0.4, 0.3]
    assert (found.n, found.difference) == (4, pytest.approx(0.175))
    assert found.p == pytest.approx(wilcoxon(differences).pvalue)
    assert -0.1 <= low < 0.175 < high <= 0.4
    with pytest.raises(ValueError, match="shorter"):
        compare(first, [second[0], second[1][:1]])
