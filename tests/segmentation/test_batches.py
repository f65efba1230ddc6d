"""Batches hold what the volumes hold, and know which structures each crop's case marks."""

from __future__ import annotations

import numpy as np
import torch

from fedmedseg.segmentation.batches import LabelledBatches


def batches(volumes, experiment):
    return LabelledBatches(volumes=volumes, data=experiment.data, segmentation=experiment.segmentation)


def test_a_batch_has_the_shapes_and_types_the_loss_expects(make_experiment, discs):
    images, labels, marked = batches(discs(3), make_experiment()).draw(np.random.default_rng(0))
    assert (images.shape, images.dtype) == ((2, 1, 64, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((2, 1, 64, 32), torch.int64)
    assert marked == [None, None]


def test_the_same_generator_gives_the_same_batch(make_experiment, discs):
    source = batches(discs(3), make_experiment())
    first, second, other = (source.draw(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_each_crop_carries_the_marks_of_its_own_case(make_experiment, memory_volumes):
    # the intensity tells the case
    shape = (64, 64, 2)
    volumes = memory_volumes(
        [np.full(shape, float(index)) for index in range(3)],
        [np.ones(shape)] * 3,
        annotated=[(1,), None, (1,)],
    )
    experiment = make_experiment(segmentation={"batch": 60, "augment": False})
    images, _, marked = batches(volumes, experiment).draw(np.random.default_rng(0))
    drawn = images[:, 0, 0, 0].int().tolist()
    assert [{0: (1,), 1: None, 2: (1,)}[case] for case in drawn] == marked
    # every volume equally likely, although marks group them: 20 of each expected, sd 3.7
    assert all(8 < drawn.count(case) < 32 for case in range(3))


def test_augmentation_changes_images_and_labels_alike(make_experiment, discs):
    volumes = discs(1)
    plain = batches(volumes, make_experiment(segmentation={"batch": 40, "augment": False}))
    changed = batches(volumes, make_experiment(segmentation={"batch": 40, "augment": True}))
    images, labels, _ = changed.draw(np.random.default_rng(0))
    assert not torch.equal(images, plain.draw(np.random.default_rng(0))[0])
    inside, outside = images[labels == 1], images[labels == 0]
    assert inside.mean() > 0.5 > -0.5 > outside.mean()
