"""Figures of the one test by hand: every case counts, a missing point is a failure, calcium beside the truth's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedseg.cardiac_ct.evaluation import CaseResult, from_plain, metrics, to_plain, write_results
from fedmedseg.core.config import Experiment
from fedmedseg.reporting.metrics import StructureScore

CALC = {"volume": 90.0, "agatston": 80.0, "true_volume": 100.0, "true_agatston": 120.0}
CASES = [
    CaseResult("a", "p1", {"RCC": 1.0, "LCC": 3.0}, 0, {"calcification": StructureScore(0.5, 2.0)}, CALC),
    CaseResult("b", "p2", {"RCC": math.inf, "LCC": 40.0}, 1, {"calcification": StructureScore(0.0, 9.0, 1)}, {}),
]


def test_no_distance_is_dropped_and_a_missing_point_is_counted() -> None:
    found = metrics({"student": CASES})
    assert found["distance/median/student/LCC"] == 21.5
    assert found["distance/mean/student/LCC"] == 21.5
    assert "distance/median/student/RCC" not in found
    assert found["distance/mean/student/RCC"] == 1.0
    assert (found["missed/student/RCC"], found["points/student/RCC"]) == (1.0, 2.0)
    assert (found["missed/student/all points"], found["points/student/all points"]) == (1.0, 4.0)
    assert all(math.isfinite(value) for value in found.values())


def test_masks_and_calcium_stand_beside_the_points() -> None:
    found = metrics({"student": CASES, "cnn": CASES[:1]})
    assert found["dice/student/calcification"] == 0.25
    assert found["failures/student/calcification"] == 1.0
    assert found["calcium/volume_error/student"] == 10.0
    assert found["calcium/agatston_error/cnn"] == 40.0


def test_a_result_is_the_same_after_it_was_plain_data() -> None:
    for case in CASES:
        again = from_plain(json.loads(json.dumps(to_plain(case), allow_nan=False)))
        assert again == case


def test_the_sites_own_file_names_cases_by_their_hash_alone(study: Callable[..., Experiment], tmp_path: Path) -> None:
    write_results(tmp_path / "s.json", {"student": CASES}, experiment=study())
    content = json.loads((tmp_path / "s.json").read_text())
    assert [case["key"] for case in content["models"]["student"]] == ["a", "b"]
    assert content["models"]["student"][1]["distances"] == {"RCC": None, "LCC": 40.0}
    assert content["figures"]["distance/median/student/LCC"] == pytest.approx(21.5)
