"""Scores survive as plain data, and what leaves the site is means over patients."""

from __future__ import annotations

import json
import math

import pytest

from fedmedseg.reporting.metrics import CaseScore, StructureScore
from fedmedseg.segmentation.scores import from_plain, metrics_of, to_plain, write_scores

NAN = math.nan
SCORES = [
    CaseScore("k1", "p1", {"lv": StructureScore(0.9, 2.0), "rv": StructureScore(NAN, NAN)}),
    CaseScore("k2", "p1", {"lv": StructureScore(0.7, 4.0), "rv": StructureScore(NAN, NAN)}),
    CaseScore("k3", "p2", {"lv": StructureScore(0.0, 90.0, 1), "rv": StructureScore(NAN, NAN)}),
]


def test_plain_data_is_json_and_comes_back():
    for score in SCORES:
        plain = json.loads(json.dumps(to_plain(score), allow_nan=False))
        assert repr(from_plain(plain)) == repr(score)


def test_metrics_are_means_over_patients_and_hold_no_nan():
    figures = metrics_of({"personal": SCORES})
    assert figures == {
        "dice/personal/lv": pytest.approx((0.8 + 0.0) / 2),
        "hd95/personal/lv": pytest.approx((3.0 + 90.0) / 2),
        # of two values their difference over the root of two
        "spread/dice/personal/lv": pytest.approx(0.8 / math.sqrt(2)),
        "spread/hd95/personal/lv": pytest.approx(87.0 / math.sqrt(2)),
        "failures/personal/lv": 1.0,
        "failures/personal/rv": 0.0,
    }


def test_a_structure_on_fewer_patients_than_may_be_told_keeps_its_figures():
    failures = {"failures/personal/lv": 1.0, "failures/personal/rv": 0.0}
    assert metrics_of({"personal": SCORES}, least=2) == metrics_of({"personal": SCORES})
    assert metrics_of({"personal": SCORES}, least=3) == failures
    # one patient has no spread
    assert set(metrics_of({"personal": SCORES[:2]})) == {"dice/personal/lv", "hd95/personal/lv", *failures}


def test_the_sites_own_file_has_volumes_patients_and_summary(tmp_path, make_experiment):
    path = tmp_path / "models" / "test_scores.json"
    write_scores(path, {"personal": SCORES}, experiment=make_experiment())
    content = json.loads(path.read_text())
    model = content["models"]["personal"]
    assert [case["key"] for case in model["volumes"]] == ["k1", "k2", "k3"]
    assert [case["patient"] for case in model["patients"]] == ["p1", "p2"]
    lv, rv = model["summary"]
    assert (lv["n"], lv["failures"], lv["dice"]) == (2, 1, pytest.approx(0.4))
    assert (rv["n"], rv["dice"]) == (0, None)
    assert content["units"]["hd95"] == "mm"
