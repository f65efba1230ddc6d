"""Scores of whole volumes: on the file's own grid, per patient, and only of what a case marks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.data.datalist import case_key
from fedmedseg.segmentation.evaluation import evaluate, labelled, validate


class Threshold(nn.Module):
    """Calls everything above 0 class 1."""

    def forward(self, images):
        return torch.cat([-images, images], dim=1) * 20


def volume(*truth_slices, size=64):
    """Image and truth: a block per slice; the image shows what the network will call class 1."""
    image = np.full((size, size, len(truth_slices)), -1.0)
    label = np.zeros_like(image)
    for index, (seen, true) in enumerate(truth_slices):
        image[:seen, :10, index] = 1.0
        label[:true, :10, index] = 1
    return image, label


def build(memory_volumes, *pairs, **options):
    images, labels = zip(*pairs, strict=True)
    return memory_volumes(list(images), list(labels), **options)


def test_dice_and_hd95_of_blocks_worked_out_by_hand(make_experiment, memory_volumes):
    volumes = build(memory_volumes, volume((20, 40), (20, 40)), spacing=(2.0, 1.0, 3.0))
    heard = []
    (score,) = evaluate(
        Threshold(),
        volumes=volumes,
        experiment=make_experiment(),
        device="cpu",
        salt="pepper-and-salt",
        on_case=lambda *progress: heard.append(progress),
    )
    found = score.structures["disc"]
    assert found.dice == pytest.approx(2 * 20 / (20 + 40))
    # every column of the truth reaches 20 voxels of 2 mm too far
    assert 0.8 * 40 < found.hd95 <= 40.0
    assert found.failures == 0
    assert heard == [(1, 1)]


def test_scores_name_cases_and_patients_by_salted_hashes(make_experiment, memory_volumes):
    volumes = build(memory_volumes, volume((9, 9)), volume((9, 9)), patients=["Jane Doe", "Jane Doe"])
    scores = evaluate(Threshold(), volumes=volumes, experiment=make_experiment(), device="cpu", salt="pepper-and-salt")
    assert [score.key for score in scores] == ["key0", "key1"]
    assert {score.patient for score in scores} == {case_key("pepper-and-salt", "Jane Doe")}
    assert "Jane" not in repr(scores)


def test_predictions_are_taken_to_the_files_own_grid(make_experiment, memory_volumes):
    class Upside(memory_volumes):
        """A file whose grid is turned by half a circle and has other voxels."""

        def to_native(self, index, probabilities):
            return probabilities.flip(1)

        def native_label(self, index):
            return self.label(index)[::-1].copy()

        def native_spacing(self, index):
            return (5.0, 5.0, 5.0)

    image, label = volume((20, 30))
    (score,) = evaluate(
        Threshold(),
        volumes=Upside([image], [label]),
        experiment=make_experiment(),
        device="cpu",
        salt="pepper-and-salt",
    )
    assert score.structures["disc"].dice == pytest.approx(2 * 20 / 50)
    assert 40.0 < score.structures["disc"].hd95 <= 50.0


def test_volumes_without_a_label_are_not_scored(make_experiment, memory_volumes):
    (image, label), (other, _) = volume((9, 9)), volume((9, 9))
    volumes = memory_volumes([other, image], [None, label])
    assert labelled(volumes) == [1]
    scores = evaluate(Threshold(), volumes=volumes, experiment=make_experiment(), device="cpu", salt="pepper-and-salt")
    assert [score.key for score in scores] == ["key1"]


def test_a_section_without_any_label_has_no_cases(memory_volumes):
    with pytest.raises(DataError) as caught:
        labelled(memory_volumes([np.zeros((4, 4, 1))], [None]))
    assert caught.value.reason == Reason.NO_CASES


def test_structures_a_case_does_not_mark_are_left_out(make_experiment, memory_volumes):
    experiment = make_experiment(data={"labels": {1: "disc", 2: "other"}})
    volumes = build(memory_volumes, volume((9, 9)), annotated=[(2,)])
    (score,) = evaluate(Threshold(), volumes=volumes, experiment=experiment, device="cpu", salt="pepper-and-salt")
    assert list(score.structures) == ["other"]


def test_an_abort_between_volumes_ends_the_evaluation(make_experiment, memory_volumes):
    answers = iter([False, True])
    with pytest.raises(Aborted):
        evaluate(
            Threshold(),
            volumes=build(memory_volumes, volume((9, 9)), volume((9, 9))),
            experiment=make_experiment(),
            device="cpu",
            salt="pepper-and-salt",
            aborted=lambda: next(answers),
        )


def test_validation_averages_over_patients_first(make_experiment, memory_volumes):
    volumes = build(
        memory_volumes,
        volume((10, 10)),
        volume((10, 10)),
        volume((10, 30)),
        patients=["a", "a", "b"],
    )
    dice = validate(Threshold(), volumes=volumes, experiment=make_experiment(), device="cpu")
    assert dice == pytest.approx((1.0 + 0.5) / 2)


def test_validation_without_anything_to_find_is_not_a_number(make_experiment, memory_volumes):
    volumes = build(memory_volumes, volume((0, 0)))
    assert math.isnan(validate(Threshold(), volumes=volumes, experiment=make_experiment(), device="cpu"))
