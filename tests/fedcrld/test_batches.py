"""Epochs: every volume once, whole depth, and cases that mark only some structures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.fedcrld.batches import EpochBatches

Study = Callable[..., Experiment]


def batches(experiment: Experiment, volumes: Any, site: str = "site-1") -> EpochBatches:
    return EpochBatches(volumes=volumes, experiment=experiment, site=site)


def test_an_epoch_has_every_volume_once_in_an_order_of_its_own(study: Study, volumes: Callable[..., Any]) -> None:
    made = batches(study(), volumes(depths=(2,) * 6))
    epochs = [[made.volume(6 * epoch + place) for place in range(6)] for epoch in range(4)]
    assert all(sorted(order) == list(range(6)) for order in epochs)
    assert len({tuple(order) for order in epochs}) > 1


def test_sites_and_seeds_have_orders_of_their_own(study: Study, volumes: Callable[..., Any]) -> None:
    held = volumes(depths=(2,) * 6)
    orders = {
        tuple(made.volume(place) for place in range(12))
        for made in (batches(study(), held), batches(study(), held, "site-2"))
    }
    assert len(orders) == 2
    assert [batches(study(), held).volume(3) for _ in range(2)] == [batches(study(), held).volume(3)] * 2


def test_with_whole_depth_a_crop_has_all_slices_of_its_volume(study: Study, volumes: Callable[..., Any]) -> None:
    made = batches(study(data={"whole_depth": True}), volumes(depths=(2, 3, 4)))
    seen = {made.draw(step, np.random.default_rng(step))[0].shape for step in range(3)}
    assert seen == {(1, 1, 16, 16, depth) for depth in (2, 3, 4)}
    without = batches(study(), volumes(depths=(2, 3, 4)))
    assert {without.draw(step, np.random.default_rng(step))[0].shape for step in range(3)} == {(1, 1, 16, 16, 2)}


@pytest.mark.parametrize(
    "switch",
    [
        {"augment": True},
        {"augment": True, "augmentation": "elastic"},
        {"foreground_share": 0.0},
        {"foreground_share": 1.0},
    ],
)
def test_each_setting_of_the_crops_changes_what_is_drawn(
    settings: Callable[..., dict[str, Any]], volumes: Callable[..., Any], switch: dict[str, Any]
) -> None:
    held, seen = volumes(depths=(4, 5, 6)), []
    # of equal settings but one: elastic against flips, anything else against the study's own
    base = {"augment": True} if "augmentation" in switch else {"foreground_share": 0.5}
    for change in (base, base | switch):
        content = settings()
        content["segmentation"] |= change
        made = batches(parse_experiment(content), held)
        seen.append(torch.stack([made.draw(step, np.random.default_rng(step))[0] for step in range(8)]))
    assert seen[0].shape == seen[1].shape
    assert not torch.equal(*seen)


def test_a_batch_has_as_many_volumes_as_the_study_says(
    settings: Callable[..., dict[str, Any]], volumes: Callable[..., Any]
) -> None:
    content = settings()
    content["segmentation"]["batch"] = 3
    made = batches(parse_experiment(content), volumes(depths=(2, 2, 2)))
    images, labels = made.draw(0, np.random.default_rng(0))
    assert images.shape == labels.shape == (3, 1, 16, 16, 2)
    drawn = {one.numpy().tobytes() for one in images}
    assert drawn == {held.tobytes() for held in volumes(depths=(2, 2, 2)).images}, "a step of three is an epoch"


def test_cases_that_mark_only_some_structures_are_left_out_and_counted(
    study: Study, volumes: Callable[..., Any]
) -> None:
    made = batches(study(), volumes(marked=[(1, 2), None, (1, 2, 3)]))
    assert len(made) == 2
    assert made.left_out == 1
    assert {made._parts[made.volume(place)].cases[0].key for place in range(4)} == {"key1", "key2"}


def test_a_site_that_marks_too_little_takes_no_part(study: Study, volumes: Callable[..., Any]) -> None:
    with pytest.raises(DataError) as caught:
        batches(study(), volumes(marked=[(1,), (2,), (3,)]))
    assert caught.value.reason == Reason.NO_CASES
