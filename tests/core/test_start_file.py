"""What a job starts from: named by its digest, checked tensor by tensor, laid over the initial model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.core.start_file import START_FILE, named_start, save_start, tensors_of, with_start

INITIAL = {"student.a": torch.zeros(2), "transfer.b": torch.zeros(3)}
OFF = {f"teacher_{task}": {"rounds": 0} for task in ("hps", "ms", "calc")} | {
    stage: {"rounds": 0} for stage in ("pseudo_labelling", "distillation", "head_tuning")
}


def study(start: str | None) -> Experiment:
    """Transfer alone, from a run whose student is given."""
    wing = {"start": start, "gate": None, "head_steps": 0, "transfer": {"backbones": ["student"]}}
    return read_settings(find_job("cardiac_ct"), [{"stages": OFF, "cardiac_ct": wing}])[1]


def test_what_is_saved_is_read_and_so_is_a_runs_shared_model(tmp_path: Path) -> None:
    digest = save_start(tmp_path / START_FILE, INITIAL)
    assert digest == content_sha256(tensors_of(tmp_path / START_FILE))
    assert [path.name for path in tmp_path.iterdir()] == [START_FILE]
    checkpoint.save(tmp_path / "shared.safetensors", {"format": 1, "system": "cardiac_ct", "tensors": dict(INITIAL)})
    assert content_sha256(tensors_of(tmp_path / "shared.safetensors")) == digest


def test_a_study_that_names_none_gets_the_very_tensors_it_had(tmp_path: Path) -> None:
    whole = read_settings(find_job("cardiac_ct"), [])[1]
    assert with_start(INITIAL, whole, tmp_path) is INITIAL
    other = read_settings(find_job("segviz"), [])[1]
    assert named_start(other, tmp_path) is None


def test_what_the_study_trains_itself_stays_and_what_it_has_no_use_for_is_left_aside(tmp_path: Path) -> None:
    digest = save_start(tmp_path / START_FILE, {"student.a": torch.ones(2), "teacher.hps.x": torch.ones(1)})
    found = with_start(INITIAL, study(digest), tmp_path)
    assert found["student.a"].tolist() == [1.0, 1.0]
    assert found["transfer.b"] is INITIAL["transfer.b"]
    assert list(found) == list(INITIAL)


@pytest.mark.parametrize("shape", [(3,), (5,)])
def test_a_layer_that_the_study_trains_anew_is_none_of_the_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """An earlier run's layer may be another task's, of the same size or not."""
    digest = save_start(tmp_path / START_FILE, {"student.a": torch.ones(2), "transfer.b": torch.ones(shape)})
    found = with_start(INITIAL, study(digest), tmp_path)
    assert found["student.a"].tolist() == [1.0, 1.0]
    assert found["transfer.b"] is INITIAL["transfer.b"]


def test_what_a_stage_trains_is_continued_where_the_file_holds_it(tmp_path: Path) -> None:
    digest = save_start(tmp_path / START_FILE, {"student.a": torch.ones(2), "teacher.hps.x": torch.ones(1)})
    wing = {"start": digest, "head_steps": 0, "transfer": None}
    stages = OFF | {"transfer": {"rounds": 0}, "pseudo_labelling": {"rounds": 1}, "distillation": {"rounds": 1}}
    stages |= {"teacher_hps": {"rounds": 1}}
    experiment = read_settings(find_job("cardiac_ct"), [{"stages": stages, "cardiac_ct": wing}])[1]
    initial = {"student.a": torch.zeros(2), "teacher.hps.x": torch.zeros(1)}
    found = with_start(initial, experiment, tmp_path)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"student.a": [1.0] * 2, "teacher.hps.x": [1.0]}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"transfer.b": torch.zeros(3)}, "without 1 tensor.*first student.a"),
        ({"student.a": torch.zeros(3)}, r"student.a is \(3,\), declared \(2,\)"),
        ({"student.a": torch.tensor([1.0, float("inf")])}, "student.a holds NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    digest = save_start(tmp_path / START_FILE, tensors)
    with pytest.raises(ConfigurationError, match=words):
        with_start(INITIAL, study(digest), tmp_path)


def test_a_missing_a_damaged_and_another_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / START_FILE
    experiment = study(content_sha256(INITIAL))
    with pytest.raises(ConfigurationError, match=r"start: got no file.*--start FILE"):
        with_start(INITIAL, experiment, tmp_path)
    save_start(file, {"student.a": torch.ones(2)})
    with pytest.raises(ConfigurationError, match=r"named in experiment\.yaml"):
        with_start(INITIAL, experiment, tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match="a damaged file"):
        with_start(INITIAL, experiment, tmp_path)
    checkpoint.save(file, {"format": 1, "tensors": {}})
    with pytest.raises(ConfigurationError, match="no tensors"):
        tensors_of(file)
    checkpoint.save(file, {"format": 1})
    with pytest.raises(ConfigurationError, match="holds no tensors"):
        tensors_of(file)
