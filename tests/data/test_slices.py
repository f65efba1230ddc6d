"""Slices for pretraining: one of every part, and views that depend on the generator alone."""

from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.data_settings import DataSection
from fedmedseg.data.augmentation import VIEWS, augment, deform
from fedmedseg.data.slices import (
    DEFORMED,
    SliceAt,
    all_slices,
    draw_pairs,
    draw_slices,
    middle_crop,
    slice_crop,
    slice_views,
)


class Stacks:
    """Volumes in memory; every voxel of a slice holds 100 x volume + slice."""

    def __init__(self, *depths: int, edge: int = 24) -> None:
        self.volumes = [
            np.broadcast_to(100.0 * number + np.arange(depth), (1, edge, edge, depth)).astype(np.float32)
            for number, depth in enumerate(depths)
        ]

    def __len__(self) -> int:
        return len(self.volumes)

    def image(self, index: int) -> np.ndarray:
        return self.volumes[index]

    def tissue(self, index: int) -> float:
        return -1.0

    def slice_tissue(self, index: int) -> np.ndarray:
        return np.ones(self.volumes[index].shape[-1])


def data(**changes: Any) -> DataSection:
    content = {"role": "cmr", "modality": "mr", "spatial_dims": 2, "labels": {1: "one"}, "crop": (16, 16)}
    return DataSection.model_validate({**content, **changes})


def test_a_draw_takes_one_slice_of_every_part_of_each_volume() -> None:
    stacks = Stacks(8, 10, 12)
    drawn = draw_slices(stacks, np.random.default_rng(0), volumes_per_step=3, parts=4)
    assert sorted(at.volume for at in drawn) == [0] * 4 + [1] * 4 + [2] * 4
    for at in drawn:
        assert at.part == at.slice * 4 // stacks.image(at.volume).shape[-1]


def test_empty_parts_are_left_out() -> None:
    drawn = draw_slices(Stacks(2), np.random.default_rng(0), volumes_per_step=1, parts=4)
    assert [(at.slice, at.part) for at in drawn] == [(0, 0), (1, 2)]


def test_each_volume_comes_once_before_any_comes_twice() -> None:
    drawn = draw_slices(Stacks(4, 4, 4), np.random.default_rng(1), volumes_per_step=5, parts=1)
    volumes = [at.volume for at in drawn]
    assert sorted(volumes[:3]) == [0, 1, 2]
    assert len(set(volumes[3:])) == 2


def test_the_rule_decides_on_the_parts() -> None:
    even = all_slices(Stacks(6), 4, "even")
    rounded = all_slices(Stacks(6), 4, "rounded_width")
    assert [at.part for at in even] == [0, 0, 1, 2, 2, 3]
    assert [at.part for at in rounded] == [0, 0, 1, 1, 2, 2]
    assert [at.slice for at in even] == list(range(6))


def test_a_crop_is_of_its_slice_and_a_copy() -> None:
    stacks = Stacks(4, 4)
    crop = slice_crop(stacks, SliceAt(volume=1, slice=3, part=3), np.random.default_rng(0), data())
    assert crop.shape == (1, 16, 16)
    assert torch.equal(crop, torch.full((1, 16, 16), 103.0))
    crop.zero_()
    assert stacks.image(1)[..., 3].min() == 103.0


def test_a_crop_prefers_tissue() -> None:
    stacks = Stacks(1, edge=64)
    image = np.zeros((1, 64, 64, 1), dtype=np.float32)
    image[:, 40:, 40:] = 1.0
    stacks.volumes = [image]
    stacks.tissue = lambda index: 0.5  # type: ignore[method-assign]
    shares = [
        float(slice_crop(stacks, SliceAt(0, 0, 0), np.random.default_rng(seed), data(min_foreground=0.2)).mean())
        for seed in range(20)
    ]
    # a random position alone holds so much in one of five cases
    assert np.mean(np.array(shares) >= 0.2) > 0.7


def test_views_follow_from_the_generator_and_differ_between_draws() -> None:
    stacks = Stacks(1)
    stacks.volumes = [np.random.default_rng(3).normal(size=(1, 32, 32, 1)).astype(np.float32)]
    one, same = (slice_views(stacks, [SliceAt(0, 0, 0)], np.random.default_rng(5), data()) for _ in range(2))
    other = slice_views(stacks, [SliceAt(0, 0, 0)], np.random.default_rng(6), data())
    assert one.shape == (1, 1, 16, 16)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("crop", [(16, 16), (24, 16)])
@pytest.mark.parametrize("modality", ["mr", "ct"])
def test_views_computed_together_are_those_computed_one_after_the_other(crop: tuple[int, int], modality: str) -> None:
    """To the last bit: a study's figures do not hang on how many slices a step takes."""
    stacks = Stacks(3, 5)
    stacks.volumes = [np.random.default_rng(7).normal(size=(1, 32, 32, depth)).astype(np.float32) for depth in (3, 5)]
    section, places = data(crop=crop, modality=modality), all_slices(stacks, 2) * 2
    together = slice_views(stacks, places, np.random.default_rng(8), section)
    rng, one_by_one, moved = np.random.default_rng(8), [], 0
    for at in places:
        view = slice_crop(stacks, at, rng, section)
        if rng.random() < DEFORMED:
            view, _ = deform(view, None, rng, ranges=VIEWS)
            moved += 1
        one_by_one.append(augment(view, None, rng, modality=section.modality, flip=0.5, turn=0.0, intensity=0.5)[0])
    assert 0 < moved < len(places)
    assert torch.equal(together, torch.stack(one_by_one))


@pytest.mark.parametrize("seed", [1, 2])
def test_pairs_are_the_slices_and_views_of_one_call_after_the_other(seed: int) -> None:
    stacks = Stacks(3, 5)
    stacks.volumes = [np.random.default_rng(7).normal(size=(1, 32, 32, depth)).astype(np.float32) for depth in (3, 5)]
    of, rng, again = {"volumes_per_step": 3, "parts": 2}, np.random.default_rng(seed), np.random.default_rng(seed)
    slices, views = draw_pairs(stacks, rng, data(), **of)
    assert slices == draw_slices(stacks, again, **of)
    for view in views:
        assert torch.equal(view, slice_views(stacks, slices, again, data()))
    assert rng.random() == again.random(), "and the generator is left as it would be"
    assert not torch.equal(*views)


def test_the_middle_crop_depends_on_nothing() -> None:
    stacks = Stacks(1)
    image = np.zeros((1, 24, 24, 1), dtype=np.float32)
    image[:, 4:20, 4:20] = 1.0
    stacks.volumes = [image]
    assert torch.equal(middle_crop(stacks, SliceAt(0, 0, 0), data()), torch.ones(1, 16, 16))


@pytest.mark.parametrize("depths", [(4,), (1, 3)])
def test_all_slices_are_all(depths: tuple[int, ...]) -> None:
    assert [(at.volume, at.slice) for at in all_slices(Stacks(*depths), 4)] == [
        (volume, index) for volume, depth in enumerate(depths) for index in range(depth)
    ]
