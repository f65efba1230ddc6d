"""Fused models at a site that took no part: which volumes count, how they are scored, how patients are paired."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.reporting.metrics import CaseScore, StructureScore
from fedmedseg.segmentation.models import InferenceModel, save_model
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.external import compare, evaluate, experts_at, labelled_cases, patient_mean
from fedmedseg.segviz.fusion import score_fused
from fedmedseg.segviz.organs import own_study


def model(file: Path, experiment: Experiment, *organs: int) -> Path:
    """The file of an untrained model of ``organs``."""
    own = own_study(experiment, organs)
    save_model(file, initial_network(own).state_dict(), experiment=own, start="personal")
    return file


def test_a_sites_own_model_file_names_the_study_it_is_of(study: Callable[..., Experiment], tmp_path: Path) -> None:
    """Whatever organs it predicts: its digest is the study's, not one of its own little label map."""
    experiment = study()
    (one,) = experts_at([model(tmp_path / "a.safetensors", experiment, 1, 3)], experiment=experiment)
    assert (one.experiment, one.data.labels) == (experiment.digest, {1: "disc", 2: "bar"})


def test_models_of_other_structures_are_refused(study: Callable[..., Experiment], tmp_path: Path) -> None:
    other = study(data={"labels": {1: "disc", 2: "liver", 3: "bar"}})
    file = model(tmp_path / "a.safetensors", other, 1, 2)
    with pytest.raises(ConfigurationError, match=r"a model of liver.*disc, square, bar"):
        experts_at([file], experiment=study())


def test_every_labelled_case_that_passes_the_gate_is_tested_whatever_its_section(
    study: Callable[..., Experiment], federate: Callable[..., InProcessFederation], tmp_path: Path
) -> None:
    federate()
    listed = tmp_path / "a" / "data" / "site-1" / "datalist.json"
    content = json.loads(listed.read_text())
    content["unlabeled"] = [{"image": content["validation"].pop()["image"]}]
    (listed.parent / content["test"][0]["label"]).write_bytes(b"no volume")
    listed.write_text(json.dumps(content))
    cases, aside = labelled_cases(listed, data=study().data, budget_mb=64)
    assert len(cases) == 2
    assert sum(aside.values()) == 1
    for entry in content["training"]:
        (listed.parent / entry["image"]).write_bytes(b"no volume")
    with pytest.raises(DataError, match="3 labelled cases, none of which can be used") as caught:
        labelled_cases(listed, data=study().data, budget_mb=64)
    assert caught.value.reason == Reason.NO_CASES


def test_patients_are_scored_as_fusion_scores_them_and_a_volume_too_small_is_set_aside(
    study: Callable[..., Experiment], federate: Callable[..., InProcessFederation], tmp_path: Path
) -> None:
    import nibabel
    import numpy as np

    federate()
    experiment = study()
    paths = [model(tmp_path / f"{organ}.safetensors", experiment, organ) for organ in (1, 2, 3)]
    experts = experts_at(paths, experiment=experiment)
    cases, _ = labelled_cases(tmp_path / "a" / "data" / "site-2" / "datalist.json", data=experiment.data, budget_mb=64)
    seen = []
    found = evaluate(experts, cases, labels=experiment.data.labels, tick=lambda done, of: seen.append((done, of)))
    plain = score_fused(experts, cases, labels=experiment.data.labels)
    assert [one.structures for one in found.patients] == [one.structures for one in plain]
    assert (found.set_aside, seen[-1]) == ({}, (len(cases), len(cases)))
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 5, 2), np.float32), np.eye(4)), cases[0].image)
    found = evaluate(experts, cases, labels=experiment.data.labels)
    assert len(found.patients) == len(cases) - 1
    assert list(found.set_aside.values()) == [1]
    with pytest.raises(DataError):
        evaluate(experts, cases[:1], labels=experiment.data.labels)


def patient(key: str, **dice: float) -> CaseScore:
    return CaseScore(key, key, {name: StructureScore(dice=value, hd95=1.0) for name, value in dice.items()})


def test_patients_are_paired_by_who_they_are_and_per_structure() -> None:
    nan = float("nan")
    first = [patient("a", disc=0.9, bar=0.7), patient("b", disc=0.8, bar=nan), patient("c", disc=0.1, bar=0.1)]
    second = [patient("b", disc=0.6, bar=0.5), patient("a", disc=0.8, bar=0.6)]
    found = compare(first, second, ["disc", "bar"])
    assert (found["disc"].n, found["bar"].n, found["mean"].n) == (2, 1, 2)
    assert found["disc"].difference == pytest.approx(0.15)
    assert found["bar"].difference == pytest.approx(0.1)
    # 0.8 - 0.7 and 0.8 - 0.55
    assert found["mean"].difference == pytest.approx(0.175)
    assert patient_mean(first[1]) == 0.8


def test_nobody_in_common_gives_no_figure() -> None:
    found = compare([patient("a", disc=0.9)], [patient("b", disc=0.9)], ["disc"])
    assert found["disc"].n == found["mean"].n == 0
    assert math.isnan(found["mean"].difference)


def test_an_expert_is_an_inference_model(study: Callable[..., Experiment], tmp_path: Path) -> None:
    (one,) = experts_at([model(tmp_path / "a.safetensors", study(), 2)], experiment=study())
    assert isinstance(one, InferenceModel)
    assert not one.model.training
