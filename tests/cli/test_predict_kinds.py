"""`fedmedseg predict` on DICOM series, of 3D models, of landmarks, on a GPU: the right place, the same bytes again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import COLUMN_SPACING, POSITION, ROW_SPACING, STEP, write_series
from small_cardiac_ct import SMALL
from tiny_study import moved, tiny
from typed import call

from fedmedseg.cardiac_ct.foundation import save_foundation
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.core.jobs import find_job, merged, read_settings
from fedmedseg.segmentation.models import load_for_inference, save_model
from fedmedseg.segmentation.prediction import native_probabilities
from fedmedseg.segmentation.starts import initial_network

TINY = tiny(norm="instance")
SERIES = Path(os.environ.get("FEDMEDSEG_DATA", "absent")) / "ct" / "dicom_series"
TILTED = ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """model(data={...}): the file of a small network with weights that mark something of each structure."""

    def make(**changes: Any) -> Path:
        study = read_settings(find_job("fedavg"), [merged(TINY, changes)])[1]
        network = initial_network(study)
        moved(network, by=0.4, seed=3)
        save_model(tmp_path / "model.safetensors", network.state_dict(), experiment=study, start="personal")
        return tmp_path / "model.safetensors"

    return make


def noise(*shape: int) -> np.ndarray:
    """int16, with bright patches."""
    rng = np.random.default_rng(5)
    return (rng.normal(200, 40, shape) + 300 * (rng.random(shape) > 0.7)).astype(np.int16)


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def twice(*words: object, home: Path) -> dict[str, bytes]:
    """What two calls with the last argument left to them wrote, which must be the same."""
    found = []
    for name in ("first", "second"):
        code, said = call("predict", *words, home / name)
        assert code == 0, said
        found.append(written(home / name))
    assert found[0] == found[1]
    return found[0]


def test_a_dicom_series_gives_a_map_where_its_headers_say(model: Callable[..., Path], tmp_path: Path) -> None:
    """As of the same voxels in a NIfTI file; the patient's name is in nothing that is written."""
    voxels = noise(24, 20, 3)
    write_series(tmp_path / "images" / "study", voxels=voxels, directions=TILTED)
    made = twice(model(), tmp_path / "images", home=tmp_path)
    assert set(made) == {"study.json", "study.nii.gz", "volumes.csv"}
    assert not any(b"DOE" in content for content in made.values())
    result = nib.load(tmp_path / "first" / "study.nii.gz")
    assert b"DOE" not in result.to_bytes()
    row, column = (np.array(one) for one in TILTED)
    # DICOM's x and y point left and back
    expected = np.eye(4)
    expected[:3] = np.diag([-1.0, -1.0, 1.0]) @ np.column_stack(
        [row * COLUMN_SPACING, column * ROW_SPACING, np.cross(row, column) * STEP, POSITION]
    )
    assert result.shape == (24, 20, 3)
    np.testing.assert_allclose(result.affine, expected, atol=1e-5)
    nib.save(nib.Nifti1Image(voxels, result.affine), tmp_path / "same.nii.gz")
    assert call("predict", tmp_path / "model.safetensors", tmp_path / "same.nii.gz", tmp_path / "map.nii.gz")[0] == 0
    labels = np.asarray(result.dataobj)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert np.array_equal(labels, np.asarray(nib.load(tmp_path / "map.nii.gz").dataobj))
    volumes = json.loads(made["study.json"])["volumes"]
    assert volumes["disc"]["ml"] == pytest.approx(
        int((labels == 1).sum()) * STEP * ROW_SPACING * COLUMN_SPACING / 1000.0
    )


def test_a_series_of_another_modality_is_not_answered(model: Callable[..., Path], tmp_path: Path) -> None:
    write_series(tmp_path / "images" / "study", voxels=noise(24, 20, 3), modality="CT")
    code, said = call("predict", model(), tmp_path / "images", tmp_path / "out")
    assert code == 2, said
    assert "modality ct, while the model is of mr" in " ".join(said.split())


@pytest.mark.skipif(not SERIES.is_dir(), reason="FEDMEDSEG_DATA names no folder with ct/dicom_series")
def test_a_scanners_series_gives_a_map_on_the_grid_of_its_labels(model: Callable[..., Path], tmp_path: Path) -> None:
    file = model(data={"modality": "ct", "crop": [64, 64], "window": [-200, 300], "spacing": [4.0, 4.0, None]})
    code, said = call("predict", file, SERIES, tmp_path / "out")
    assert code == 0, said
    made = nib.load(tmp_path / "out" / "dicom_series.nii.gz")
    labels = nib.load(SERIES.with_name("dicom_totalseg_labels.nii.gz"))
    assert made.shape == labels.shape
    # theirs lie flipped in y
    flipped = labels.affine.copy()
    flipped[:3, 3] += labels.affine[:3, 1] * (labels.shape[1] - 1)
    flipped[:3, 1] *= -1
    np.testing.assert_allclose(made.affine, flipped, atol=1e-3)


def test_a_3d_model_gives_the_same_bytes_again(model: Callable[..., Path], tmp_path: Path) -> None:
    """Windows that overlap, another spacing than the image's, and mirror images."""
    file = model(data={"spatial_dims": 3, "crop": [16, 16, 8], "spacing": [2.0, 2.0, 2.0]})
    (tmp_path / "images").mkdir()
    affine = np.array([[-1.6, 0.0, 0.1, 7.0], [0.0, 1.7, 0.0, -3.0], [0.2, 0.0, 2.5, 11.0], [0.0, 0.0, 0.0, 1.0]])
    for name in "ab":
        nib.save(nib.Nifti1Image(noise(30, 28, 12), affine), tmp_path / "images" / f"{name}.nii.gz")
    made = twice(file, tmp_path / "images", "--flips", home=tmp_path)
    assert set(made) == {"a.json", "a.nii.gz", "b.json", "b.nii.gz", "volumes.csv"}
    result = nib.load(tmp_path / "first" / "a.nii.gz")
    assert (result.shape, len(np.unique(np.asarray(result.dataobj)))) == ((30, 28, 12), 3)
    np.testing.assert_allclose(result.affine, affine, atol=1e-6)


@pytest.mark.parametrize("landmarks", ["spheres", "heatmaps"])
def test_landmarks_of_cardiac_ct_are_the_same_bytes_again(tmp_path: Path, landmarks: str) -> None:
    changes = {"data": {"crop": [64, 32, 32]}, "cardiac_ct": {"landmarks": landmarks}}
    study = read_settings(find_job("cardiac_ct"), [merged(SMALL, changes)])[1]
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in initial_shared(study).items()
    }
    save_foundation(tmp_path / "student.safetensors", tensors, experiment=study, what="student")
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(noise(66, 36, 34), np.diag([-3.0, 3.0, 3.0, 1.0])), tmp_path / "images" / "ct.nii.gz")
    made = twice(tmp_path / "student.safetensors", tmp_path / "images", home=tmp_path)
    assert {"ct_landmarks.json", "points.csv"} <= set(made)
    assert any(place for place in json.loads(made["ct_landmarks.json"]).values()), "a point was found"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine")
def test_a_gpu_answers_as_the_cpu_does(model: Callable[..., Path], tmp_path: Path) -> None:
    """But for rounding, which on a GPU may be to TF32's 10 bits: voxels not between two have the same label."""
    file = model(data={"spatial_dims": 3, "crop": [16, 16, 8]})
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(noise(30, 28, 12), np.diag([-1.6, 1.7, 2.5, 1.0])), image)
    maps = {}
    for device in ("cpu", "cuda"):
        code, said = call("predict", file, image, tmp_path / f"{device}.nii.gz", "--device", device)
        assert code == 0, said
        maps[device] = np.asarray(nib.load(tmp_path / f"{device}.nii.gz").dataobj)
    found = {device: native_probabilities(load_for_inference(file), image, device=device) for device in maps}
    assert found["cuda"].device.type == "cpu"
    assert (found["cpu"] - found["cuda"]).abs().max() < 0.02
    best = found["cpu"].topk(2, dim=0).values
    sure = (best[0] - best[1] > 0.04).numpy()
    assert sure.mean() > 0.5
    assert np.array_equal(maps["cpu"][sure], maps["cuda"][sure])
