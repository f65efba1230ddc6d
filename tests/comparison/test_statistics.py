"""Statistics of a comparison against numbers by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, wilcoxon

from fedmedseg.comparison.statistics import compare, holm, interval, mean_of_sites, over_seeds, patient_array

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
