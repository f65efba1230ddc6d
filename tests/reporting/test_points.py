"""Distances of points: by hand, in their own rows, none of them left out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedmedseg.core.errors import DataError
from fedmedseg.reporting.points import (
    ALL,
    PointCase,
    compare_points,
    median_and_quartiles,
    point_distances,
    score_points,
    summarise_points,
)

MISSING = [math.nan] * 3
NAMES = ("RCC", "LCC", "NCC")
TRUTH = [[0, 0, 0], [10, 0, 0], [0, 20, 0]]


def test_distances_are_euclidean_millimetres():
    assert point_distances([[3, 4, 0], [10, 0, 2], [0, 20, 0]], TRUTH).tolist() == [5, 2, 0]


def test_a_point_that_was_not_found_is_a_failure_and_shifts_no_other():
    assert point_distances([[0, 0, 1], MISSING, [0, 20, 3]], TRUTH).tolist() == [1, math.inf, 3]


def test_a_point_that_is_not_in_the_scan_has_no_distance_whatever_was_predicted():
    distances = point_distances([[0, 0, 1], [1, 1, 1], MISSING], [[0, 0, 0], MISSING, MISSING])
    assert distances[0] == 1
    assert np.isnan(distances[1:]).all()


def test_points_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="the same"):
        point_distances(TRUTH[:2], TRUTH)
    with pytest.raises(DataError, match="one for each of RCC"):
        score_points(TRUTH, TRUTH, names=("RCC", "LCC"), key="k", patient="p")


def test_a_case_names_its_distances_and_counts_invented_points():
    predicted, truth = [[0, 0, 2], [1, 1, 1], MISSING], [[0, 0, 0], MISSING, [0, 20, 0]]
    case = score_points(predicted, truth, names=NAMES, key="k", patient="p")
    assert case.distances == {"RCC": 2.0, "NCC": math.inf}
    assert case.invented == 1


def test_no_distance_is_dropped_from_mean_median_or_count():
    cases = [PointCase(key=str(i), patient=str(i), distances={"RCC": d}) for i, d in enumerate([1, 2, 3, 90, math.inf])]
    one, pooled = summarise_points({"cnn": cases})
    assert (one.point, pooled.point) == ("RCC", ALL)
    assert (one.n, one.missed, one.far) == (5, 1, 1)
    assert one.failure_rate == pytest.approx(0.2)
    assert one.mean == pytest.approx(24.0)
    assert (one.median, one.q25, one.q75) == (3, 2, 90)


def test_points_are_summed_up_each_and_together_per_model():
    cases = [PointCase(key="a", patient="a", distances={"RCC": 1.0, "LCC": 3.0}, invented=2)]
    rows = summarise_points({"cnn": cases, "student": []})
    assert [(row.model, row.point, row.n) for row in rows] == [
        ("cnn", "RCC", 1),
        ("cnn", "LCC", 1),
        ("cnn", ALL, 2),
        ("student", ALL, 0),
    ]
    assert rows[2].mean == 2.0
    assert rows[2].invented == 2
    assert math.isnan(rows[3].median)
    assert math.isnan(rows[3].failure_rate)


def test_quartiles_are_numpys_where_everything_was_found():
    values = np.random.default_rng(0).exponential(size=23).tolist()
    assert median_and_quartiles(values) == pytest.approx(tuple(np.quantile(values, [0.5, 0.25, 0.75])))
    # two of four missing: half of the points lie within no distance at all
    assert median_and_quartiles([1, 2, math.inf, math.inf]) == (math.inf, 1.75, math.inf)


def test_two_models_are_compared_over_points_that_both_found_and_the_others_counted():
    first = [PointCase(key=k, patient=k, distances={"RCC": 3.0, "LCC": d}) for k, d in (("a", 5.0), ("b", math.inf))]
    second = [PointCase(key=k, patient=k, distances={"RCC": 1.0, "LCC": d}) for k, d in (("a", 3.0), ("b", 2.0))]
    result = compare_points(first, [*second, PointCase(key="c", patient="c", distances={"RCC": 50.0})])
    assert result.distances.n == 2
    assert result.distances.difference == pytest.approx(2.0)
    assert (result.only_first, result.only_second) == (0, 1)


def test_two_volumes_of_one_patient_count_as_one():
    cases = [PointCase(key=k, patient="p", distances={"RCC": d}) for k, d in (("a", 1.0), ("b", 3.0))]
    zeros = [PointCase(key=k, patient="p", distances={"RCC": 0.0}) for k in "ab"]
    result = compare_points(cases, zeros)
    assert (result.distances.n, result.distances.difference) == (1, 2.0)
