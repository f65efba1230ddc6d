"""Whole-volume and patch prediction: what is cut comes back where it was, and patches blend to probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedmedseg.cardiac_ct.inference import activated, centred, predict_patches, predict_whole, uncentred
from fedmedseg.cardiac_ct.network import build_student, build_teacher
from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.config import Experiment

Study = Callable[..., Experiment]


@pytest.mark.parametrize("shape", [(6, 5, 4), (3, 8, 4), (2, 2, 2)])
def test_what_is_cut_or_padded_comes_back_where_it_was(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    size = (4, 4, 4)
    back = uncentred(torch.from_numpy(centred(volume, size)), shape).numpy()
    seen = uncentred(torch.ones(2, *size), shape).numpy()[1] == 1
    assert np.array_equal(back[:, seen], volume[:, seen])
    # what lies outside is background
    assert bool((back[0, ~seen] == 1).all())
    assert bool((back[1, ~seen] == 0).all())
    assert seen.sum() == np.prod([min(edge, 4) for edge in shape])


def test_a_cnn_answers_with_probabilities_of_the_whole_scan(study: Study) -> None:
    experiment = study(cardiac_ct={"teacher": {"dropout": 0.5}})
    teacher = build_teacher(experiment, "hps").train()
    inputs = np.random.default_rng(1).normal(size=(1, 40, 30, 26)).astype(np.float32)

    def predict(choice: ComputeChoice = SHIPPED) -> torch.Tensor:
        size = experiment.wing.teacher.size
        return predict_whole(teacher, inputs, task="hps", size=size, landmarks="spheres", device="cpu", choice=choice)

    found = predict()
    assert found.shape == (6, 40, 30, 26)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(40, 30, 26))
    assert teacher.training
    # dropout and deep supervision are off, so a second answer is the same
    assert torch.equal(found, predict())
    rounded = predict(ComputeChoice(precision="bf16"))
    assert not torch.equal(found, rounded)
    torch.testing.assert_close(found, rounded, atol=0.05, rtol=0)


def test_patches_overlap_and_blend_to_probabilities_of_each_head(study: Study) -> None:
    student = build_student(study())
    inputs = np.random.default_rng(2).normal(size=(1, 64, 32, 64)).astype(np.float32)

    def predict(overlap: float, choice: ComputeChoice = SHIPPED) -> dict[str, torch.Tensor]:
        return predict_patches(
            student,
            inputs,
            heads={task: student.heads[task] for task in ("ms", "calc")},
            crop=(64, 32, 32),
            overlap=overlap,
            landmarks="spheres",
            device="cpu",
            choice=choice,
        )

    found = predict(0.5)
    assert {task: tuple(one.shape) for task, one in found.items()} == {"ms": (3, 64, 32, 64), "calc": (2, 64, 32, 64)}
    apart, rounded = predict(0.0), predict(0.0, ComputeChoice(precision="bf16"))
    for task, one in found.items():
        torch.testing.assert_close(one.sum(dim=0), torch.ones(64, 32, 64))
        assert not torch.equal(one, apart[task])
        assert not torch.equal(rounded[task], apart[task])
        torch.testing.assert_close(rounded[task], apart[task], atol=0.05, rtol=0)


def test_heat_maps_of_points_are_each_their_own() -> None:
    logits = torch.randn(1, 3, 2, 2, 2)
    assert torch.equal(activated(logits, "ms", "heatmaps"), torch.sigmoid(logits))
    assert torch.equal(activated(logits, "ms", "spheres"), torch.softmax(logits, 1))
    assert torch.equal(activated(logits[:, :2], "calc", "heatmaps"), torch.softmax(logits[:, :2], 1))
