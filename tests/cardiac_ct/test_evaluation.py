"""Figures of the one test by hand: every case counts, a missing point is a failure, calcium beside the truth's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from fedmedseg.cardiac_ct.evaluation import CaseResult, from_plain, metrics, score_cases, to_plain, write_results
from fedmedseg.cardiac_ct.lessons import Lessons
from fedmedseg.core.config import Experiment
from fedmedseg.data.site import Site
from fedmedseg.data.tasks import TaskVolumes
from fedmedseg.data.volumes import Volumes
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


def test_training_and_test_see_a_scan_through_the_same_constants_and_a_perfect_answer_is_scored_so(
    study: Callable[..., Experiment], tmp_path: Path
) -> None:
    """Invariant 8, with the constants of the predictor by hand."""
    affine, shape = np.diag([3.0, 3.0, 3.0, 1.0]), (64, 32, 33)
    hounsfield = np.random.default_rng(0).uniform(-1500, 1500, shape).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[30:34, 15:18, 15:18] = 1
    hounsfield[mask > 0] = 500.0
    for name in ("a", "b"):
        nib.Nifti1Image(hounsfield, affine).to_filename(tmp_path / f"{name}.nii")
        nib.Nifti1Image(mask, affine).to_filename(tmp_path / f"{name}_label.nii")
    listed = {
        section: [{"image": f"{name}.nii", "label": f"{name}_label.nii", "patient": name}]
        for section, name in (("training", "a"), ("test", "b"))
    }
    (tmp_path / "list.json").write_text(json.dumps(listed))
    experiment = study()
    site = Site(
        name="site-1", state_root=tmp_path, cache=tmp_path / "c", models=tmp_path, device="cpu",
        datasets={"cardiac_ct": tmp_path / "list.json"}, salt="salt and pepper", simulated=True,
    )  # fmt: skip
    taught = Lessons(
        volumes=Volumes(site=site, experiment=experiment, section="training"), experiment=experiment, tasks=("calc",)
    )
    test = Volumes(site=site, experiment=experiment, section="test")
    seen: list[np.ndarray] = []

    def predict(inputs: np.ndarray, tasks: Any) -> dict[str, torch.Tensor]:
        seen.append(inputs)
        found = torch.from_numpy(mask.astype(np.float32))
        return {"calc": torch.stack([1 - found, found])}

    marked = {"calc": TaskVolumes(volumes=test, task="calc", radius=2.0)}
    (result,) = score_cases(predict, volumes=test, marked=marked, experiment=experiment, salt="salt and pepper")
    assert np.array_equal(seen[0], taught.inputs(0))
    expected = (np.clip(hounsfield, -42.0, 878.0) - 373.769) / 166.805
    np.testing.assert_allclose(seen[0][0], expected, rtol=1e-5, atol=1e-5)
    assert result.structures["calcification"].dice == 1.0
    assert result.calcium["volume"] == result.calcium["true_volume"] == pytest.approx(36 * 27.0)
    assert result.calcium["agatston"] == result.calcium["true_agatston"] > 0
