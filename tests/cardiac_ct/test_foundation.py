"""A run's networks as a file: rebuilt from it alone, refused where they do not fit, and a new task learned on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from click.testing import Result
from small_cardiac_ct import SMALL
from typer.testing import CliRunner

from fedmedseg.cardiac_ct.exporting import exportable
from fedmedseg.cardiac_ct.foundation import What, load_foundation, number_in, save_foundation, save_models, tuning_study
from fedmedseg.cardiac_ct.learner import KnowledgeDistillationLearner
from fedmedseg.cardiac_ct.network import build_last_layer, parameters_of
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.cardiac_ct.prediction import TaskPredictor
from fedmedseg.cardiac_ct.tuning import _figures_of
from fedmedseg.cli.main import app
from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.jobs import find_job, read_settings, write_job
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.start_file import START_FILE, save_start, tensors_of, with_start
from fedmedseg.data.site import write_phantoms
from fedmedseg.data.tasks import TASKS

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
    assert [number for number, name in found.data.labels.items() if name in TASKS["coronaries"].names] == [2]
    assert len(found.data.labels) == 254, "other numbers in label maps set no case aside"
    assert (found.wing.transfer.patients, found.wing.transfer.backbones) == (1, ("student",))
    with pytest.raises(ConfigurationError, match="backbone: got cnn"):
        tuning_study(load_foundation(file), task="coronaries", backbone="cnn", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data list of a site that annotates every task; its label maps hold 1 and 2."""
    numbers = {"training": 1, "unlabeled": 0, "validation": 0, "test": 1, "sites": 1, "size": [96, 56, 56]}
    section = PhantomSection.model_validate(
        {"family": "cardiac_ct", "annotation": "published", "heart": True, **numbers}
    )
    return write_phantoms(section, seed=3, name="site-1", home=tmp_path_factory.mktemp("site"))


def trained(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The study's networks and layers as far from their start as a run would leave them."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in initial_shared(experiment).items()
    }


def tune(file: Path, listed: Path, out: Path, *options: str) -> Result:
    command = ["foundation", "tune", str(file), "--list", str(listed), "--out", str(out), "--steps", "1"]
    return CliRunner().invoke(app, [*command, *options])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("what", "backbone"), [("all", "student"), ("cnn", "cnn")])
def test_a_new_layer_for_any_task_on_either_network_begins_at_the_seed_and_moves_nothing_else(
    study: Study,
    listed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    what: What,
    backbone: Literal["student", "cnn"],
) -> None:
    """The file is of a run with several CNNs and with layers of its own, for the coronaries."""
    began: list[Mapping[str, torch.Tensor]] = []
    run = KnowledgeDistillationLearner.run

    def watched(self: KnowledgeDistillationLearner, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        began.append(dict(shared))
        return run(self, task, shared)

    monkeypatch.setattr(KnowledgeDistillationLearner, "run", watched)
    file, out = tmp_path / "run.safetensors", tmp_path / "tuned.safetensors"
    save_foundation(file, trained(study()), experiment=study(), what=what)
    number = "2" if task == "coronaries" else "1"
    done = tune(file, listed, out, "--task", task, "--backbone", backbone, "--label", number)
    assert done.exit_code == 0, done.output
    table = done.output[done.output.rindex("──") :].splitlines()[1:]
    told = {line.strip().split("  ")[0]: line for line in table if line.strip()}
    scores = {"calcium, mean absolute error"} if task == "calc" else set()
    known = {*TASKS[task].names, *scores, *(["all points"] if TASKS[task].kind == "points" else [])}
    assert told
    assert set(told) <= known
    assert scores <= set(told)
    assert all("Dice " in told[name] for name in TASKS[task].names if TASKS[task].kind == "mask")

    before, after = load_foundation(file), load_foundation(out)
    layer = parameters_of(build_last_layer(after.experiment, backbone), f"transfer.{backbone}.")
    assert {name for name in after.tensors if name.startswith("transfer.")} == set(layer)
    for name, tensor in layer.items():
        assert torch.equal(began[0][name], tensor)
    assert any(not torch.equal(after.tensors[name], tensor) for name, tensor in layer.items())
    frozen = {name: tensor for name, tensor in after.tensors.items() if name not in layer}
    assert frozen
    assert all(torch.equal(before.tensors[name], tensor) for name, tensor in frozen.items())

    assert task in TaskPredictor(foundation=after).tasks
    assert exportable(after, which=backbone, task=task).labels[1] == TASKS[task].names[0]
    digest = save_start(tmp_path / START_FILE, tensors_of(out))
    again = tuning_study(after, task="coronaries", backbone=backbone, steps=1, learning_rate=0.01, patients=None)
    assert again.wing.start == digest
    started = with_start(initial_shared(again), again, tmp_path)
    assert all(torch.equal(started[name], tensor) for name, tensor in frozen.items())


def test_a_cnn_of_a_whole_runs_file_takes_a_new_layer_and_the_file_is_not_replaced_unasked(
    study: Study, listed: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "run.safetensors", tmp_path / "tuned.safetensors"
    save_foundation(file, trained(study()), experiment=study())
    done = tune(file, listed, out, "--task", "ms", "--backbone", "cnn")
    assert done.exit_code == 0, done.output
    assert "ms by a new last layer on the CNN of hps" in done.output
    assert {name.split(".")[0] for name in load_foundation(out).tensors} == {"teacher", "transfer"}
    again = tune(file, listed, out, "--task", "ms", "--backbone", "cnn")
    assert again.exit_code == 2
    assert "--force" in again.output
    out.unlink()
    again = tune(file, listed, out, "--task", "ms", "--backbone", "cnn")
    assert again.exit_code == 2, "the record is an answer too"
    assert "tuned.run.json" in again.output


def test_a_tuned_layers_card_says_what_it_was_put_on_and_what_was_measured(
    study: Study, listed: Path, tmp_path: Path
) -> None:
    """The call leaves a record as a run does, and nothing of it is called a result of all sites together."""
    file, out = tmp_path / "student.safetensors", tmp_path / "vessels.safetensors"
    save_foundation(file, trained(study()), experiment=study(), what="student")
    assert tune(file, listed, out, "--label", "2").exit_code == 0
    record = json.loads((tmp_path / "vessels.run.json").read_text())
    dice = record["rounds"][-1]["sites"]["here"]["metrics"]["dice/student/coronaries"]
    assert load_foundation(out).run == record["run"]

    def card(*options: str) -> str:
        folder = tmp_path / f"out{len(options)}"
        command = ["export", str(out), "--to", "torchscript", "--task", "coronaries", "--out", str(folder)]
        done = CliRunner().invoke(app, [*command, *options])
        assert done.exit_code == 0, done.output
        return (folder / "README.md").read_text()

    bare, told = card(), card("--run", str(tmp_path / "vessels.run.json"))
    for text in (bare, told):
        assert "| model | student: the transformer, frozen, under a last layer learned anew" in text
        assert "of all sites together" not in text
    assert "| sites that trained its last layer | 1 |" in told
    assert f"| coronaries | 1 | {dice:.3f} | - |" in told
    assert "Not given: the model was exported without the record" in bare

    old = tmp_path / "old"
    command = ["export", str(out), "--to", "torchscript", "--task", "hps", "--out", str(old)]
    assert CliRunner().invoke(app, command).exit_code == 0
    text = (old / "README.md").read_text()
    taken = f"taken over unchanged from networks trained before this study ({load_foundation(file).digest[:16]})"
    assert f"student: the study's transformer, which answers every task; {taken}" in text
    assert "| sites that trained | Not given. |" in text
    assert "a sphere around it" in text
    assert "Only the points RCC, LCC" in text

    first = out.read_bytes(), json.loads((tmp_path / "vessels.run.json").read_text())
    assert tune(file, listed, out, "--label", "2", "--force").exit_code == 0
    again = json.loads((tmp_path / "vessels.run.json").read_text())
    assert (out.read_bytes(), again["rounds"], again["run"]) == (first[0], first[1]["rounds"], first[1]["run"])


def test_scans_smaller_than_the_files_crop_are_refused_in_words_that_fit_the_command(
    study: Study, tmp_path: Path
) -> None:
    """The crop is the file's; nobody can set data.crop here."""
    numbers = {"training": 1, "unlabeled": 0, "validation": 0, "test": 0, "sites": 1, "size": [32, 32, 32]}
    section = PhantomSection.model_validate({"family": "cardiac_ct", "annotation": "published", **numbers})
    small = write_phantoms(section, seed=3, name="site-1", home=tmp_path / "site")
    file = tmp_path / "student.safetensors"
    save_foundation(file, trained(study()), experiment=study(), what="student")
    done = tune(file, small, tmp_path / "x.safetensors", "--label", "2")
    said = " ".join(done.output.split())
    assert done.exit_code == 2
    assert "the crop is the file's" in said
    assert "make data.crop smaller" not in said
    assert not (tmp_path / "x.safetensors").exists()
    content = json.loads(small.read_text())
    small.write_text(json.dumps(content | {"training": [{**content["training"][0], "image": "none.nii.gz"}]}))
    done = tune(file, small, tmp_path / "x.safetensors", "--label", "2")
    assert "correct the paths" in " ".join(done.output.split()), "a list's own fault keeps its own remedy"


def test_what_is_said_of_all_points_is_the_new_layers_alone() -> None:
    own = {"distance/median/student/MS1": 1.0, "points/student/MS1": 1.0, "points/student/all points": 1.0}
    other = {"points/student/RCC": 1.0, "dice/student/calcification": 0.5, "points/cnn/RCC": 1.0}
    assert set(_figures_of("ms", "student", own | {"points/cnn/RCC": 1.0})) == set(own)
    assert set(_figures_of("ms", "student", own | other)) == set(own) - {"points/student/all points"}
    scores = {"calcium/volume_error/student": 1.0, "calcium/agatston_error/student": 2.0}
    more = own | other | scores | {"calcium/volume_error/cnn": 1.0}
    assert set(_figures_of("calc", "student", more)) == {"dice/student/calcification", *scores}
    assert not set(scores) & set(_figures_of("ms", "student", more))


def test_one_command_writes_a_runs_networks_as_a_file(tmp_path: Path) -> None:
    settings, experiment = read_settings(find_job("cardiac_ct"), [SMALL])
    job = write_job(find_job("cardiac_ct"), settings, tmp_path / "job")
    tensors, shared = trained(experiment), tmp_path / "shared.safetensors"

    def leave(**entries: object) -> None:
        content = {"format": 1, "system": "cardiac_ct", "experiment": experiment.digest, "run": "r1"}
        checkpoint.save(shared, {**content, "tensors": tensors, **entries})

    def export(out: str, *options: str) -> Result:
        command = ["foundation", "export", str(shared), "--experiment", str(job), "--out", str(tmp_path / out)]
        return CliRunner().invoke(app, [*command, *options])

    leave()
    for what, beginnings in (("student", {"student"}), ("cnn", {"teacher"}), ("all", {"student", "teacher"})):
        done = export(f"{what}.safetensors", "--what", what)
        assert done.exit_code == 0, done.output
        found = load_foundation(tmp_path / f"{what}.safetensors")
        assert found.digest in done.output
        assert f"{sum(tensor.numel() for tensor in found.tensors.values()):,} parameters" in done.output
        assert (found.run, found.experiment.digest) == ("r1", experiment.digest)
        assert {name.split(".")[0] for name in found.tensors} == {*beginnings, "transfer"}
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.tensors.items())
    assert set(load_foundation(tmp_path / "all.safetensors").tensors) == set(tensors)
    leave(experiment="0" * 64)
    for refused, words in (
        (export("x.safetensors"), "a model of experiment 0000"),
        (export("x.txt"), "ends with .safetensors"),
        (export("all.safetensors"), "--force"),
        (export("x.safetensors", "--experiment", "segviz"), "a study of segviz"),
    ):
        assert refused.exit_code == 2
        assert words in " ".join(refused.output.split())
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("labels", "task", "number"),
    [
        ({"0": "background", "1": "calcification", "2": "coronaries"}, "coronaries", 2),
        ({"0": "background", "1": "calcification", "2": "coronaries"}, "calc", 1),
        ({"1": "calcification"}, "hps", 1),
        (None, "coronaries", 1),
    ],
)
def test_the_list_says_which_number_its_label_maps_have_for_a_task(
    labels: object, task: str, number: int, tmp_path: Path
) -> None:
    file = tmp_path / "datalist.json"
    file.write_text(json.dumps({"training": []} | ({} if labels is None else {"labels": labels})))
    assert number_in(file, task) == number


def test_a_list_that_names_its_labels_otherwise_asks_for_the_number(tmp_path: Path) -> None:
    file = tmp_path / "datalist.json"
    file.write_text(json.dumps({"labels": {"1": "calcification"}}))
    with pytest.raises(ConfigurationError, match=r"--label: got none, .*Expected one that the list calls coronaries"):
        number_in(file, "coronaries")
    file.write_text("[")
    with pytest.raises(ConfigurationError, match="--list"):
        number_in(file, "calc")
