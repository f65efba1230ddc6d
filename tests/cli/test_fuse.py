"""`fedmedseg fuse` writes one label map from several sites' models, and tests them where nobody took part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core.config import Experiment
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.segmentation.models import save_model
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.organs import own_study

TINY: dict[str, Any] = {
    "data": {
        "role": "shapes",
        "modality": "mr",
        "spatial_dims": 2,
        "labels": {1: "disc", 2: "bar"},
        "crop": [16, 16],
        "spacing": [None, None, None],
        "phantom": None,
    },
    "network": {"name": "unet", "channels": [4, 8], "res_units": 1},
}


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
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
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
    code, said = call("predict", str(place.root / "i0.nii.gz"), *place.options(), "--out", str(out))
    assert code == 0, said
    written, image = nibabel.load(out), nibabel.load(place.root / "i0.nii.gz")
    assert written.shape == image.shape
    np.testing.assert_allclose(written.affine, image.affine)
    values = np.asarray(written.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2}
    assert f"disc {int((values == 1).sum())}, bar {int((values == 2).sum())}" in said
    before = out.read_bytes()
    assert call("predict", str(place.root / "i1.nii.gz"), *place.options(), "--out", str(out))[0] == 2
    assert out.read_bytes() == before
    assert call("predict", str(place.root / "i1.nii.gz"), *place.options(), "--out", str(out), "--force")[0] == 0


def test_how_reaches_the_fusion(place: Place) -> None:
    """Two models of the disc: their mean, and the mean weighted by how sure each is, give other maps."""
    models = [*place.models, place.model("other", 1, seed=7)]
    maps = {}
    for how in ("probability", "uncertainty"):
        out = place.root / f"{how}.nii.gz"
        code, said = call(
            "predict", str(place.root / "i0.nii.gz"), *place.options(*models), "--out", str(out), "--how", how
        )
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


def test_a_damaged_volume_is_set_aside_and_counted(place: Place) -> None:
    (place.root / "i1.nii.gz").write_bytes(b"no volume")
    code, said = call("score", str(place.list), *place.options())
    assert code == 0, said
    assert "1 patients" in said
    assert "set aside: 1 x" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: ["score", str(place.list), *place.options(place.models[0])], "no model of bar"),
        (lambda place: ["score", str(place.root / "none.json"), *place.options()], "none.json"),
        (lambda place: ["score", str(place.list), *place.options(str(place.root / "no.safetensors"))], "got no file"),
        (lambda place: ["score", str(place.list), *place.options(str(place.root))], "shared.safetensors: got no file"),
        (
            lambda place: ["score", str(place.list), "--models", place.models[0], "--experiment", "fedata"],
            "a study of fedata",
        ),
        (
            lambda place: ["predict", str(place.list), *place.options(), "--out", str(place.root / "x.nii.gz")],
            "IMAGE: got",
        ),
        (
            lambda place: ["predict", "none.nii.gz", *place.options(), "--out", str(place.root / "x.nii.gz")],
            "no file at none.nii.gz",
        ),
        (
            lambda place: [
                "predict", str(place.root / "i0.nii.gz"), *place.options(), "--out", str(place.root / "x.txt")
            ],
            "ends with .nii.gz or .nii",
        ),
        (
            lambda place: [
                "predict", str(place.root / "i0.nii.gz"), *place.options(), "--out", str(place.root / "no" / "x.nii")
            ],
            "no folder",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_and_nothing_is_written(place: Place, change: Any, words: str) -> None:
    before = set(place.root.rglob("*"))
    code, said = call(*change(place))
    assert code == 2, said
    assert words in said
    assert set(place.root.rglob("*")) == before
