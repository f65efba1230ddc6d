"""`fedmedseg fuse` answers with several sites' models as `predict` does with one, and tests them at a site outside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from tiny_study import moved, tiny
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core.config import Experiment
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.segmentation.models import load_for_inference, save_model
from fedmedseg.segmentation.prediction import native_probabilities
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.organs import own_study

TINY = tiny()


def call(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fuse", *options], env={"COLUMNS": "300"})
    return result.exit_code, " ".join(result.output.split())


class Place:
    """A study, untrained models of its two structures, and two patients of a hospital outside."""

    def __init__(self, root: Path) -> None:
        self.root = root
        settings, self.study = read_settings(find_job("segviz"), [TINY])
        self.experiment = root / "experiment.yaml"
        self.experiment.write_text(yaml.safe_dump(settings))
        rng = np.random.default_rng(1)
        affine = np.diag([1.5, 2.0, 8.0, 1.0])
        entries = []
        for number in range(2):
            label = np.zeros((20, 18, 2), np.uint8)
            label[3:9, 3:9], label[10:16, 2 + number : 8] = 1, 2
            image = (label * 50.0 + rng.normal(size=label.shape)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(image, affine), root / f"i{number}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(label, affine), root / f"l{number}.nii.gz")
            entries.append({"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz", "patient": f"DOE{number}"})
        self.list = root / "datalist.json"
        self.list.write_text(json.dumps({"training": entries[:1], "test": entries[1:]}))
        self.models = [self.model(name, organ, seed=organ) for name, organ in (("disc", 1), ("bar", 2))]

    def model(self, name: str, organ: int, *, seed: int) -> str:
        """The file of a network of one structure, with weights of its own."""
        own: Experiment = own_study(self.study, (organ,))
        network = initial_network(own)
        moved(network, by=0.3, seed=seed)
        save_model(self.root / f"{name}.safetensors", network.state_dict(), experiment=own, start="personal")
        return str(self.root / f"{name}.safetensors")

    def options(self, *models: str) -> list[str]:
        given = [word for model in models or self.models for word in ("--models", model)]
        return [*given, "--experiment", str(self.experiment)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    torch.set_num_threads(1)
    return Place(tmp_path)


def test_a_label_map_lies_on_the_volumes_own_grid_under_the_studys_numbers(place: Place) -> None:
    out = place.root / "map.nii.gz"
    call_again = ("predict", str(place.root / "i0.nii.gz"), str(out), *place.options())
    code, said = call(*call_again)
    assert code == 0, said
    written, image = nibabel.load(out), nibabel.load(place.root / "i0.nii.gz")
    assert written.shape == image.shape
    assert np.array_equal(written.affine, image.affine)
    values = np.asarray(written.dataobj)
    assert set(np.unique(values)) == {0, 1, 2}
    figures = json.loads((place.root / "map.json").read_text())
    assert {name: one["voxels"] for name, one in figures["volumes"].items()} == {
        "disc": int((values == 1).sum()), "bar": int((values == 2).sum()),
    }  # fmt: skip
    assert figures["volumes"]["disc"]["ml"] == pytest.approx(int((values == 1).sum()) * 1.5 * 2.0 * 8.0 / 1000.0)
    assert figures["model"]["experiment"] == place.study.digest
    assert figures["model"]["model"] == "2 fused by probability"
    before = out.read_bytes()
    assert call(*call_again)[0] == 2
    assert call(*call_again, "--force")[0] == 0
    assert out.read_bytes() == before


def test_a_folder_gives_maps_and_a_table_and_the_same_bytes_again(place: Place) -> None:
    images = place.root / "images"
    images.mkdir()
    for number in range(2):
        (place.root / f"i{number}.nii.gz").rename(images / f"i{number}.nii.gz")
    (images / "broken.nii.gz").write_bytes(b"none")
    written = []
    for name in ("out", "again"):
        out = place.root / name
        code, said = call("predict", str(images), str(out), *place.options())
        assert code == 1, said
        assert "3/3 images" in said
        assert "(2 images)" in said
        assert "broken no NIfTI file" in said
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert set(written[0]) == {
        "failed.csv", "i0.json", "i0.nii.gz", "i1.json", "i1.nii.gz", "volumes.csv",
    }  # fmt: skip
    assert written[0] == written[1]
    rows = [line.split(b",")[:2] for line in written[0]["volumes.csv"].splitlines()]
    assert rows[1:] == [[name, organ] for name in (b"i0", b"i1") for organ in (b"disc", b"bar")]


def test_flips_change_the_map_and_are_the_mean_over_mirror_images(place: Place) -> None:
    image, maps = place.root / "i0.nii.gz", {}
    for name, options in (("plain", []), ("flipped", ["--flips"])):
        out = place.root / f"{name}.nii.gz"
        code, said = call("predict", str(image), str(out), *place.options(), *options)
        assert code == 0, said
        maps[name] = np.asarray(nibabel.load(out).dataobj)
    assert (maps["plain"] != maps["flipped"]).any()
    assert json.loads((place.root / "flipped.json").read_text())["flips"] is True
    experts = [load_for_inference(Path(model)) for model in place.models]
    means = [native_probabilities(one, image, flips=True)[1] for one in experts]
    expected = torch.stack([torch.full_like(means[0], 0.5), *means]).max(dim=0).indices
    assert np.array_equal(maps["flipped"], expected.numpy())


def test_of_one_sites_model_the_structures_it_knows_can_be_asked_for(place: Place) -> None:
    """One hospital's heads came, the other's did not: what is there is still of use, under the study's numbers."""
    whole, bars = place.root / "whole.nii.gz", place.root / "bars.nii.gz"
    image = str(place.root / "i0.nii.gz")
    assert call("predict", image, str(whole), *place.options())[0] == 0
    code, said = call("predict", image, str(bars), *place.options(place.models[1]), "--structure", "bar")
    assert code == 0, said
    marked = set(np.unique(nibabel.load(bars).get_fdata()))
    assert marked == {0.0, 2.0}
    assert set(np.unique(nibabel.load(whole).get_fdata())) > {0.0, 1.0}
    beside = place.root / "beside.nii.gz"
    assert call("predict", image, str(beside), *place.options(), "--structure", "bar")[0] == 0
    every = nibabel.load(whole).get_fdata()
    assert np.array_equal(nibabel.load(beside).get_fdata(), np.where(every == 2, 2, 0)), "as in the map of all"
    assert not np.array_equal(nibabel.load(bars).get_fdata(), nibabel.load(beside).get_fdata()), "discs compete"
    code, said = call("score", str(place.list), *place.options(place.models[1]), "--structure", "bar")
    assert code == 0, said
    assert " disc " not in said
    code, said = call("predict", image, str(bars), *place.options(), "--structure", "baar")
    assert (code, "--structure: got 'baar'. Expected a structure of" in said, "write 'bar'" in said) == (2, True, True)


def test_answers_for_other_structures_are_not_taken_over(place: Place) -> None:
    image, out = str(place.root / "i0.nii.gz"), place.root / "answers"
    options = ("predict", image, str(out), *place.options())
    assert call(*options, "--structure", "bar")[0] == 0
    assert call(*options, "--resume")[0] == 0
    assert (out / "volumes.csv").read_text().count("\n") == 3, "both structures"
    # what was asked before is kept
    before = (out / "i0.json").stat().st_mtime_ns
    assert call(*options, "--resume")[0] == 0
    assert (out / "i0.json").stat().st_mtime_ns == before


def test_the_study_is_that_of_the_run_whose_folder_is_named_and_which_it_is_is_said(place: Place) -> None:
    image, out = str(place.root / "i0.nii.gz"), str(place.root / "x.nii.gz")
    models = place.root / "run" / "models"
    models.mkdir(parents=True)
    (place.root / "run" / "report").mkdir()
    record = {"settings": place.study.model_dump(mode="json"), "rounds": []}
    (place.root / "run" / "report" / "run.json").write_text(json.dumps(record))
    code, said = call("predict", image, out, "--models", str(models))
    assert code == 2
    assert f"study: {place.study.study}, of the run in {place.root / 'run'}" in said
    assert f"--models: got no shared.safetensors in {models}" in said
    code, said = call("predict", image, out, "--models", place.models[0])
    assert (code, "the shipped one, whose numbers the maps have; --experiment names another" in said) == (2, True)
    assert "a model of disc. Expected models of liver" in said


def test_a_model_of_another_system_is_told_what_reads_it(place: Place) -> None:
    study = read_settings(find_job("fedavg"), [{key: value for key, value in TINY.items() if key != "segviz"}])[1]
    file = place.root / "other.safetensors"
    save_model(file, initial_network(study).state_dict(), experiment=study, start="personal")
    code, said = call("score", str(place.list), *place.options(place.models[0], str(file)))
    assert (code, "--models: got other.safetensors, a model of fedavg" in said) == (2, True), said
    assert "use `fedmedseg predict` with it" in said


def test_a_model_that_is_named_twice_is_told(place: Place) -> None:
    shutil.copy(place.models[0], place.root / "copy.safetensors")
    options = place.options(*place.models, str(place.root / "copy.safetensors"))
    code, said = call("predict", str(place.root / "i0.nii.gz"), str(place.root / "x.nii.gz"), *options)
    assert (code, "which hold the same model" in said) == (2, True), said


def test_how_reaches_the_fusion(place: Place) -> None:
    """Two models of the disc: their mean, and the mean weighted by how sure each is, give other maps."""
    models = [*place.models, place.model("other", 1, seed=7)]
    maps = {}
    for how in ("probability", "uncertainty"):
        out = place.root / f"{how}.nii.gz"
        code, said = call("predict", str(place.root / "i0.nii.gz"), str(out), *place.options(*models), "--how", how)
        assert code == 0, said
        maps[how] = np.asarray(nibabel.load(out).dataobj)
    assert (maps["probability"] != maps["uncertainty"]).any()


def test_a_site_outside_is_scored_per_patient_and_paired_with_other_models(place: Place) -> None:
    others = [place.model("disc-2", 1, seed=11), place.model("bar-2", 2, seed=12)]
    against = [word for model in others for word in ("--against", model)]
    out = place.root / "scores.json"
    code, said = call("score", str(place.list), *place.options(), *against, "--out", str(out))
    assert code == 0, said
    assert "2 patients" in said
    assert "not found" in said
    found = json.loads(out.read_text())
    assert found["experiment_sha256"] == place.study.digest
    assert {name: len(rows) for name, rows in found["patients"].items()} == {"models": 2, "against": 2}
    assert set(found["patients"]["models"][0]) == {"disc", "bar"}
    dice = {
        name: [np.mean([one["dice"] for one in row.values()]) for row in rows]
        for name, rows in found["patients"].items()
    }
    assert found["paired"]["mean"]["n"] == 2
    assert found["paired"]["mean"]["difference"] == pytest.approx(
        np.mean(dice["models"]) - np.mean(dice["against"]), abs=2e-5
    )
    assert f"{found['paired']['mean']['difference']:+.3f}, p " in said
    assert "DOE" not in said + out.read_text(), "no patient is named"


def test_models_that_lack_an_organ_are_refused_before_any_volume_is_computed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmedseg.segviz.external.evaluate", lambda *a, **k: pytest.fail("nothing may be computed"))
    code, said = call("score", str(place.list), *place.options(), "--against", place.models[0])
    assert code == 2
    assert "no model of bar" in said


def test_a_damaged_volume_is_set_aside_and_counted(place: Place) -> None:
    (place.root / "i1.nii.gz").write_bytes(b"no volume")
    code, said = call("score", str(place.list), *place.options())
    assert code == 0, said
    assert "1 patient " in said
    assert "set aside: 1 x" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: ["score", str(place.list), *place.options(place.models[0])], "no model of bar"),
        (lambda place: ["score", str(place.root / "none.json"), *place.options()], "none.json"),
        (lambda place: ["score", str(place.list), *place.options(str(place.root / "no.safetensors"))], "nothing at"),
        (lambda place: ["score", str(place.list), *place.options(str(place.root))], "got no shared.safetensors"),
        (
            lambda place: ["score", str(place.list), "--models", place.models[0], "--experiment", "fedata"],
            "a study of fedata",
        ),
        (
            lambda place: [
                "predict", str(place.root / "i0.nii.gz"), str(place.root / "x"), *place.options(place.models[0])
            ],
            "no model of bar",
        ),
        (lambda place: ["predict", str(place.list), str(place.root / "x"), *place.options()], "IMAGE: got"),
        (lambda place: ["predict", "none.nii.gz", str(place.root / "x"), *place.options()], "nothing at none.nii.gz"),
        (lambda place: ["predict", str(place.root), str(place.root / "x"), *place.options()], "inside the folder"),
        (
            lambda place: [
                "predict", str(place.root / "i0.nii.gz"), place.models[0] + "/x", *place.options()
            ],
            "Not a directory",
        ),
        (
            lambda place: [
                "predict", str(place.root / "i0.nii.gz"), str(place.root / "i0.nii.gz"), *place.options(), "--force"
            ],
            "which is read",
        ),
        (
            lambda place: [
                "predict", str(place.root / "i0.nii.gz"), str(place.root / "x"), *place.options(), "--device", "cuda"
            ],
            "a GPU that torch can use",
        ),
        (lambda place: ["score", str(place.list), *place.options(), "--out", "x.txt"], "ends with .json"),
        (
            lambda place: ["score", str(place.list), *place.options(), "--out", place.models[0] + "/x.json"],
            "which is a file",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    place: Place, change: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = set(place.root.rglob("*"))
    code, said = call(*change(place))
    assert code == 2, said
    assert words in said
    assert set(place.root.rglob("*")) == before
