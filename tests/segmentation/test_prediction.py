"""A model's answer to one file lies on the file's own grid, is the test's own, and changes with mirror images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.checks import CaseRejected
from fedmedseg.segmentation.inference import predict, predict_flipped
from fedmedseg.segmentation.models import InferenceModel
from fedmedseg.segmentation.prediction import SegmentationPredictor, checked, native_probabilities, require_device


class Brighter(nn.Module):
    """The structure wherever the prepared image is above ``at``."""

    def __init__(self, at: float = 0.5) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(images), 20.0 * (images - self.at)], dim=1)


class Sided(nn.Module):
    """Sees every row but the first of a window as the structure: not the same in a mirror."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([torch.zeros_like(images), 9.0 * torch.ones_like(images) * self.weight], dim=1)
        logits[:, 1, 0] = -2.0
        return logits


def section(**changes: object) -> DataSection:
    content = {
        "role": "ct", "modality": "ct", "spatial_dims": 3, "labels": {1: "organ"}, "crop": [16, 16, 16],
        "spacing": [1.5, 1.5, 3.0], "window": [0.0, 1000.0],
    }  # fmt: skip
    return DataSection.model_validate(content | changes)


def predictor(model: nn.Module, data: DataSection, *, flips: bool = False) -> SegmentationPredictor:
    made = InferenceModel(
        model=model, data=data, overlap=0.25, study="s", system="fedata", start="personal", experiment="e"
    )
    return SegmentationPredictor(model=made, flips=flips)


def turned() -> np.ndarray:
    angle = np.deg2rad(20.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 1.0, 0], [-1.2, 0, 0], [0, 0, 2.5]])
    affine[:3, 3] = [-40.5, 12.25, 7.0]
    return affine


AFFINES = {
    "plain": np.diag([1.0, 1.0, 2.0, 1.0]),
    "flipped": np.diag([-1.0, -1.2, 2.0, 1.0]),
    "slices first": np.array([[0, 0, 1.0, 3], [0, 1.2, 0, 4], [-2.5, 0, 0, 5], [0, 0, 0, 1.0]]),
    "turned": turned(),
}


@pytest.mark.parametrize("name", AFFINES)
def test_what_is_bright_is_found_where_it_lies_whatever_the_grid(tmp_path: Path, name: str) -> None:
    """A bright block in the file is the block of the answer, but for what resampling does to its border."""
    image = np.zeros((40, 36, 30), np.int16)
    truth = np.zeros(image.shape, bool)
    truth[6:22, 20:32, 4:19] = True
    image[truth] = 1000
    nib.save(nib.Nifti1Image(image, AFFINES[name]), tmp_path / "x.nii.gz")
    answer = predictor(Brighter(), section())(tmp_path / "x.nii.gz")
    found = answer.maps[""].labels
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    # a voxel of the study's grid at most, 2 of the file's
    core = np.zeros(image.shape, bool)
    core[8:20, 22:30, 6:17] = True
    around = np.zeros(image.shape, bool)
    around[4:24, 18:34, 2:21] = True
    assert found[core].all()
    assert not found[~around].any()
    assert answer.maps[""].names == {1: "organ"}


def test_flips_are_the_mean_over_mirror_images(tmp_path: Path) -> None:
    """Two passes in four see a row at the border as structure: sigmoid(9) and sigmoid(-2) = 0.1192 in equal parts."""
    data = section(spatial_dims=2, crop=[16, 16], spacing=[None, None, None])
    image = torch.zeros(1, 16, 16, 2)
    plain = predict(Sided(), image, data, 0.0, "cpu")
    mirrored = predict_flipped(Sided(), image, data, 0.0, "cpu")
    assert plain[1, 0, 3, 0].item() == pytest.approx(0.1192, abs=1e-3)
    assert plain[1, -1, 3, 0].item() == pytest.approx(1.0, abs=1e-3)
    assert mirrored[1, [0, -1], 3, 0].tolist() == pytest.approx([0.5595, 0.5595], abs=1e-3)
    assert mirrored[1, 5, 3, 0].item() == pytest.approx(1.0, abs=1e-3)
    assert mirrored.sum(dim=0).numpy() == pytest.approx(1.0, abs=1e-5)


def test_the_switch_reaches_the_answer(tmp_path: Path) -> None:
    data = section(spacing=[None, None, None])
    nib.save(nib.Nifti1Image(np.arange(4096, dtype=np.int16).reshape(16, 16, 16), np.eye(4)), tmp_path / "x.nii.gz")
    plain = native_probabilities(predictor(Sided(), data).model, tmp_path / "x.nii.gz")
    mirrored = native_probabilities(predictor(Sided(), data).model, tmp_path / "x.nii.gz", flips=True)
    assert (plain - mirrored).abs().max() > 0.3
    maps = [predictor(Sided(), data, flips=flips)(tmp_path / "x.nii.gz").maps[""].labels for flips in (False, True)]
    assert (maps[0] != maps[1]).any()


def test_the_gate_is_a_studys_own(tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(b"none")
    with pytest.raises(CaseRejected, match="no NIfTI file"):
        checked(tmp_path / "x.nii.gz", data=section(), budget_mb=1)
    nib.save(nib.Nifti1Image(np.zeros((80, 80, 80), np.int16), np.eye(4)), tmp_path / "y.nii.gz")
    with pytest.raises(CaseRejected, match="memory budget"):
        checked(tmp_path / "y.nii.gz", data=section(), budget_mb=1)
    with pytest.raises(CaseRejected, match="contrast"):
        checked(tmp_path / "y.nii.gz", data=section(), budget_mb=100)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="a GPU that torch can use"):
        require_device("cuda")
    require_device("cpu")
