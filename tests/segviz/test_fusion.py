"""Fusion by hand: whose voxel it is, what an unsure model counts, and a fused map on a file's own grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.datalist import Case
from fedmedseg.segmentation.models import InferenceModel
from fedmedseg.segviz.fusion import combined, fuse, fused_prediction, organ_probabilities, score_fused, uncertainty

LABELS = {1: "liver", 2: "spleen"}


def line(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


def test_a_voxel_is_the_organ_of_the_highest_probability_above_a_half() -> None:
    experts = [{"liver": line(0.9, 0.6, 0.4, 0.5)}, {"spleen": line(0.2, 0.7, 0.3, 0.1)}]
    assert fuse(experts, LABELS).ravel().tolist() == [1, 2, 0, 0]
    assert fuse(experts, LABELS, threshold=0.35).ravel().tolist() == [1, 2, 1, 1]
    assert fuse(experts, {3: "spleen"}).ravel().tolist() == [0, 3, 0, 0]


def test_the_order_of_the_models_does_not_matter() -> None:
    experts = [{"liver": line(0.9, 0.6)}, {"spleen": line(0.2, 0.7)}, {"liver": line(0.1, 0.2)}]
    assert np.array_equal(fuse(experts, LABELS), fuse(experts[::-1], LABELS))


def test_an_organ_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no model of spleen"):
        fuse([{"liver": line(0.9)}], LABELS)


def test_uncertainty_has_a_part_of_each_pass_and_one_of_their_difference() -> None:
    """Passes 0.5 and 0.5: 0.25 + 0; 0 and 1: 0 + 0.25; 0.2 and 0.4: 0.2 + 0.1 - 0.09."""
    passes = torch.stack([line(0.5, 0.0, 0.2), line(0.5, 1.0, 0.4)])
    assert uncertainty(passes).ravel().tolist() == pytest.approx([0.25, 0.25, 0.21])


def test_an_unsure_model_of_the_same_organ_counts_less_by_uncertainty() -> None:
    """Weights 1 - 4 * 0.09 = 0.64 at 0.9 and 0 at 0.5."""
    maps = [line(0.9), line(0.5)]
    assert combined(maps, "probability").item() == pytest.approx(0.7)
    assert combined(maps, "uncertainty").item() == pytest.approx(0.9, abs=1e-5)
    # weights 0.64 and 0.04
    assert combined([line(0.9), line(0.4)], "uncertainty").item() == pytest.approx((0.576 + 0.016) / 0.68, abs=1e-5)


def test_passes_that_differ_make_a_model_unsure() -> None:
    wavering = torch.stack([line(0.0), line(1.0)])
    assert combined([wavering, line(0.9)], "uncertainty").item() == pytest.approx(0.9, abs=1e-5)
    assert combined([wavering, line(0.9)], "probability").item() == pytest.approx(0.7)


def test_how_changes_the_map() -> None:
    """A mean of 0.48 under 0.5; by uncertainty 0.9 has weight 0.64 and 0.4 and 0.14 have 0.04 and 0.52: 0.55."""
    experts = [{"liver": line(0.9)}, {"liver": line(0.4)}, {"liver": line(0.14)}, {"spleen": line(0.0)}]
    assert fuse(experts, LABELS, how="probability").item() == 0
    assert fuse(experts, LABELS, how="uncertainty").item() == 1


class Brighter(nn.Module):
    """Two classes: the organ wherever the prepared image is above ``at``."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(images), 20.0 * (images - self.at)], dim=1)


def expert(study: Callable[..., Experiment], organ: str, window: tuple[float, float], at: float) -> InferenceModel:
    data = study(data={"modality": "ct", "window": list(window), "labels": {1: organ}, "crop": [8, 8]}).data
    return InferenceModel(
        model=Brighter(at), data=data, overlap=0.25, study="s", system="segviz", start="personal", experiment="e"
    )


@pytest.fixture
def volume(tmp_path: Path) -> Case:
    """HU 0 with a spleen of 100 and a liver of 900, stored with flipped axes, 2 x 1 x 3 mm."""
    image = np.zeros((12, 10, 3), dtype=np.int16)
    image[1:4], image[7:11] = 100, 900
    label = (2 * (image == 100) + (image == 900)).astype(np.uint8)
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, affine), tmp_path / "label.nii.gz")
    return Case(
        image=tmp_path / "image.nii.gz", label=tmp_path / "label.nii.gz", patient="p", annotated_labels=None, key="k"
    )


def test_each_model_sees_its_own_window_and_the_map_lies_on_the_files_own_grid(
    study: Callable[..., Experiment], volume: Case
) -> None:
    liver, spleen = expert(study, "liver", (500, 1000), 0.1), expert(study, "spleen", (50, 150), 0.4)
    found = organ_probabilities(liver, volume.image)["liver"]
    assert found.shape == (12, 10, 3)
    assert found[8, 0, 0] > 0.99 > 0.2 > found[2, 0, 0]
    fused = fused_prediction([liver, spleen], volume.image, labels=LABELS)
    truth = np.asarray(nibabel.load(volume.label).dataobj)
    # in the spleen's window the liver is bright too: the surer model has it
    assert np.array_equal(fused, truth)
    assert fused.dtype == np.uint8


def test_a_fused_map_is_scored_per_organ_in_native_space(study: Callable[..., Experiment], volume: Case) -> None:
    liver, spleen = expert(study, "liver", (500, 1000), 0.1), expert(study, "spleen", (50, 150), 0.4)
    unlabelled = Case(image=volume.image, label=None, patient="q", annotated_labels=None, key="q")
    (score,) = score_fused([liver, spleen], [volume, unlabelled], labels=LABELS)
    assert {organ: one.dice for organ, one in score.structures.items()} == pytest.approx({"liver": 1.0, "spleen": 1.0})
    (other,) = score_fused([spleen, expert(study, "liver", (5000, 9000), 0.4)], [volume], labels=LABELS)
    assert other.structures["liver"].dice == 0.0
