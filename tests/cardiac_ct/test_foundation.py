"""A run's networks as a file: rebuilt from it alone, refused where they do not fit, and a new task learned on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedmedseg.cardiac_ct.foundation import load_foundation, save_foundation, save_models, tuning_study
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.cli.main import app
from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.data.site import write_phantoms

Study = Callable[..., Experiment]


@pytest.fixture
def file(study: Study, tmp_path: Path) -> Path:
    """The student of the tiny study, as a run would leave it."""
    experiment = study()
    save_foundation(tmp_path / "student.safetensors", initial_shared(experiment), experiment=experiment, what="student")
    return tmp_path / "student.safetensors"


def test_a_file_holds_what_was_asked_for_and_the_settings_that_build_it(study: Study, file: Path) -> None:
    found = load_foundation(file)
    assert found.experiment.digest == study().digest
    assert {name.split(".")[0] for name in found.tensors} == {"student", "transfer"}
    ours = {name: tensor for name, tensor in initial_shared(study()).items() if name in found.tensors}
    assert content_sha256(ours) == found.digest


def test_a_site_gets_a_file_for_each_kind_that_there_is(study: Study, tmp_path: Path) -> None:
    tensors = initial_shared(study())
    save_models(tmp_path / "both", tensors, experiment=study(), run="r1")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["cnn.safetensors", "student.safetensors"]
    assert load_foundation(tmp_path / "both" / "cnn.safetensors").run == "r1"
    save_models(
        tmp_path / "one", {n: t for n, t in tensors.items() if n.startswith("teacher.")}, experiment=study(), run=""
    )
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["cnn.safetensors"]


def test_what_does_not_fit_is_refused(study: Study, file: Path, tmp_path: Path) -> None:
    tree = checkpoint.load_file(file)
    name = next(iter(tree["tensors"]))

    def changed(**entries: object) -> Path:
        checkpoint.save(tmp_path / "x.safetensors", {**tree, **entries})
        return tmp_path / "x.safetensors"

    with pytest.raises(ConfigurationError, match=r"another kind"):
        load_foundation(changed(kind="encoder"))
    with pytest.raises(ConfigurationError, match="no file"):
        load_foundation(tmp_path / "nothing.safetensors")
    with pytest.raises(ConfigurationError, match=r"do not build, first student\.x"):
        load_foundation(changed(tensors={**tree["tensors"], "student.x": torch.zeros(1)}))
    with pytest.raises(FedMedSegError, match="declared"):
        load_foundation(changed(tensors={**tree["tensors"], name: torch.zeros(1)}))
    with pytest.raises(ConfigurationError, match=r"[Ee]xpected"):
        load_foundation(changed(settings={**tree["settings"], "network": {"name": "unknown"}}))
    with pytest.raises(ConfigurationError, match="none"):
        save_foundation(tmp_path / "y.safetensors", {}, experiment=study())


def test_a_new_task_is_a_study_of_transfer_alone(file: Path) -> None:
    options = {"steps": 3, "learning_rate": 0.01, "patients": 1, "number": 2}
    found = tuning_study(load_foundation(file), task="coronaries", backbone="student", **options)  # type: ignore[arg-type]
    assert {stage for stage, section in found.stages.items() if section.rounds} == {"transfer", "evaluation"}
    assert found.data.labels == {1: "label 1", 2: "coronaries"}
    assert (found.wing.transfer.patients, found.wing.transfer.backbones) == (1, ("student",))
    with pytest.raises(ConfigurationError, match="backbone: got cnn"):
        tuning_study(load_foundation(file), task="coronaries", backbone="cnn", **options)  # type: ignore[arg-type]


def test_one_command_learns_a_new_task_on_the_file_and_moves_nothing_else(file: Path, tmp_path: Path) -> None:
    numbers = {"training": 1, "unlabeled": 0, "validation": 0, "test": 1, "sites": 1, "size": [96, 56, 56]}
    section = PhantomSection.model_validate({"family": "cardiac_ct", "annotation": "published", **numbers})
    listed = write_phantoms(section, seed=3, name="site-1", home=tmp_path / "site")
    out = tmp_path / "coronaries.safetensors"
    command = [
        "foundation",
        "tune",
        str(file),
        "--list",
        str(listed),
        "--out",
        str(out),
        "--steps",
        "1",
        "--label",
        "2",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "dice/student/coronaries" in done.output
    before, after = load_foundation(file), load_foundation(out)
    kept = [name for name in after.tensors if name.startswith("student.")]
    assert kept
    assert all(torch.equal(after.tensors[name], before.tensors[name]) for name in kept)
    assert not torch.equal(
        after.tensors["transfer.student.conv.conv.weight"], before.tensors["transfer.student.conv.conv.weight"]
    )
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "--force" in again.output
