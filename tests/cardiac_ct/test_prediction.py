"""A run's networks on a scan: the test's own answers, landmarks that a data list can take, and a calcium score."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedmedseg.cardiac_ct.answers import found_in
from fedmedseg.cardiac_ct.foundation import load_foundation, save_foundation
from fedmedseg.cardiac_ct.lessons import inputs_of
from fedmedseg.cardiac_ct.models import Networks
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.cardiac_ct.prediction import TaskPredictor, Which, held
from fedmedseg.cli.main import app
from fedmedseg.core.config import Experiment
from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.checks import CaseRejected
from fedmedseg.data.landmarks import read_landmarks
from fedmedseg.data.site import Site, write_phantoms
from fedmedseg.data.tasks import TASKS
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.calcium import calcium_score
from fedmedseg.segmentation.inference import label_map

Study = Callable[..., Experiment]


def networks(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The study's first networks, moved enough to mark something."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in initial_shared(experiment).items()
    }


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data list of a site with one test scan, its heart's structures beside it."""
    numbers = {"training": 1, "unlabeled": 0, "validation": 0, "test": 1, "sites": 1, "size": [96, 56, 56]}
    section = PhantomSection.model_validate(
        {"family": "cardiac_ct", "annotation": "published", "heart": True, **numbers}
    )
    return write_phantoms(section, seed=3, name="site-1", home=tmp_path_factory.mktemp("site"))


def entry(listed: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(listed.read_text())["test"][0]
    return {name: str(listed.parent / value) for name, value in found.items() if name in ("image", "heart")}


def opened(listed: Path, experiment: Experiment, home: Path) -> tuple[Site, Volumes]:
    site = Site(
        name="site-1", state_root=home, cache=home / "cache", models=home, device="cpu",
        datasets={"cardiac_ct": listed}, salt="salt and pepper", simulated=True,
    )  # fmt: skip
    return site, Volumes(site=site, experiment=experiment, section="test")


def test_the_command_gives_what_the_test_would_score(study: Study, listed: Path, tmp_path: Path) -> None:
    experiment = study()
    tensors = networks(experiment)
    save_foundation(tmp_path / "student.safetensors", tensors, experiment=experiment, what="student")
    image, out = Path(entry(listed)["image"]), tmp_path / "out"
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "student.safetensors"), str(image), str(out)])
    assert done.exit_code == 0, done.output
    site, volumes = opened(listed, experiment, tmp_path)
    tasks = [*experiment.wing.tasks, experiment.wing.transfer.task]
    expected = Networks(experiment=experiment, site=site, tensors=tensors).predict_student()(
        inputs_of(volumes, 0, experiment), tasks
    )
    name = image.name.removesuffix(".nii.gz")
    for task in tasks:
        written = nib.load(out / f"{name}_{task}.nii.gz")
        assert np.array_equal(written.affine, nib.load(image).affine)
        assert np.array_equal(np.asarray(written.dataobj), label_map(volumes.to_native(0, expected[task])))
    points = read_landmarks(out / f"{name}_landmarks.json")
    assert list(points) == [*TASKS["hps"].names, *TASKS["ms"].names]
    for task in ("hps", "ms"):
        voxels = found_in(expected[task], task, "spheres").points
        assert voxels is not None
        for point, place in zip(TASKS[task].names, volumes.to_world(0, voxels), strict=True):
            if np.isnan(place).any():
                assert points[point] is None
            else:
                assert points[point] == pytest.approx(place.tolist())
    figures = json.loads((out / f"{name}.json").read_text())
    mask = label_map(volumes.to_native(0, expected["calc"])) == 1
    score = calcium_score(
        volumes.native_image(0), mask, spacing=volumes.native_spacing(0), slice_axis=volumes.slice_axis(0)
    )
    assert mask.any(), "there is something to score"
    assert figures["calcium"]["agatston"] == pytest.approx(score.agatston)
    assert figures["calcium"]["volume_mm3"] == pytest.approx(score.volume_mm3)
    # a sphere that stands for a point has no volume of its own
    assert set(figures["volumes"]) == {"calcification", TASKS[experiment.wing.transfer.task].names[0]}
    assert {path.name for path in out.glob("*.csv")} == {"volumes.csv", "points.csv", "calcium.csv"}


def test_the_hearts_structures_reach_a_network_that_was_trained_beside_them(
    study: Study, listed: Path, tmp_path: Path
) -> None:
    experiment = study(cardiac_ct={"conditioning": True}, data={"phantom": {"heart": True}})
    save_foundation(tmp_path / "cnn.safetensors", networks(experiment), experiment=experiment, what="cnn")
    predictor = TaskPredictor(foundation=load_foundation(tmp_path / "cnn.safetensors"))
    assert predictor.origin.model == "cnn"
    scan = entry(listed)
    bare = predictor(Path(scan["image"]))
    beside = predictor(Path(scan["image"]), heart=Path(scan["heart"]))
    assert any((bare.maps[task].labels != beside.maps[task].labels).any() for task in predictor.names)
    elsewhere = nib.load(scan["heart"])
    moved = elsewhere.affine.copy()
    moved[:3, 3] += 1000.0
    nib.save(nib.Nifti1Image(np.asarray(elsewhere.dataobj), moved), tmp_path / "elsewhere.nii.gz")
    with pytest.raises(CaseRejected, match="heart map that marks nothing within the image"):
        predictor(Path(scan["image"]), heart=tmp_path / "elsewhere.nii.gz")
    with pytest.raises(ConfigurationError, match=r"--flips: got a model that answers hps, ms\..*sides exchanged"):
        TaskPredictor(foundation=load_foundation(tmp_path / "cnn.safetensors"), flips=True)


@pytest.mark.parametrize("which", ["student", "cnn"])
def test_flips_of_masks_are_the_mean_over_mirror_images(
    study: Study, listed: Path, tmp_path: Path, which: Which
) -> None:
    off = {"rounds": 0}
    experiment = study(
        cardiac_ct={"tasks": ["calc"], "conditioning": True, "transfer": {"cnn": "calc"}},
        data={"phantom": {"heart": True}},
        stages={"teacher_hps": off, "teacher_ms": off},
    )
    file = tmp_path / "masks.safetensors"
    save_foundation(file, networks(experiment), experiment=experiment)
    scan, out = entry(listed), tmp_path / "out"
    command = ["predict", str(file), scan["image"], str(out), "--heart", scan["heart"], "--network", which, "--flips"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output

    site, volumes = opened(listed, experiment, tmp_path)
    built = Networks(experiment=experiment, site=site, tensors=networks(experiment))
    predict = built.predict_student() if which == "student" else built.predict_cnn()
    inputs, tasks = inputs_of(volumes, 0, experiment), ["calc", "coronaries"]
    answers = []
    for x, y, z in itertools.product((1, -1), repeat=3):
        found = predict(inputs[:, ::x, ::y, ::z].copy(), tasks)
        answers.append({task: found[task].numpy()[:, ::x, ::y, ::z] for task in tasks})
    changed = False
    for task in tasks:
        mean = torch.from_numpy(np.mean([answer[task] for answer in answers], axis=0))
        written = np.asarray(nib.load(next(out.glob(f"*_{task}.nii.gz"))).dataobj)
        assert (written == label_map(volumes.to_native(0, mean))).mean() > 0.9999
        plain = label_map(volumes.to_native(0, torch.from_numpy(answers[0][task].copy())))
        changed |= bool((written != plain).mean() > 0.001)
    assert changed


def test_flips_are_refused_where_a_hearts_structures_are_answered(study: Study, tmp_path: Path) -> None:
    """A mirrored heart has its right ventricle on the left."""
    off = {"rounds": 0}
    experiment = study(
        cardiac_ct={"tasks": ["calc"], "transfer": {"task": "heart", "cnn": "calc"}},
        stages={"teacher_hps": off, "teacher_ms": off},
    )
    save_foundation(tmp_path / "x.safetensors", networks(experiment), experiment=experiment)
    with pytest.raises(ConfigurationError, match=r"--flips: got a model that answers heart\."):
        TaskPredictor(foundation=load_foundation(tmp_path / "x.safetensors"), flips=True)


def test_heat_maps_give_points_and_no_spheres(study: Study, tmp_path: Path) -> None:
    experiment = study(cardiac_ct={"landmarks": "heatmaps"})
    save_foundation(tmp_path / "x.safetensors", initial_shared(experiment), experiment=experiment)
    foundation = load_foundation(tmp_path / "x.safetensors")
    predictor = TaskPredictor(foundation=foundation)
    assert tuple(predictor.names) == ("calc", experiment.wing.transfer.task)
    assert predictor.points == (*TASKS["hps"].names, *TASKS["ms"].names)
    assert held(foundation).which == "student"
    assert held(foundation, "cnn").tasks == ("hps", "ms", "calc", experiment.wing.transfer.task)
    save_foundation(tmp_path / "y.safetensors", initial_shared(experiment), experiment=experiment, what="cnn")
    with pytest.raises(ConfigurationError, match="--network: got student"):
        held(load_foundation(tmp_path / "y.safetensors"), "student")
