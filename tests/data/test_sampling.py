"""Crops: where they come from, and that image and label stay together."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.data_settings import DataSection
from fedmedseg.data.sampling import image_crop, labelled_crop, tissue_share

THREE: dict[str, Any] = {"spatial_dims": 3, "crop": (16, 16, 16)}
TWO: dict[str, Any] = {"spatial_dims": 2, "crop": (16, 16)}


class Memory:
    """Volumes that lie in memory; tissue is what is above zero."""

    def __init__(self, images: list[np.ndarray], labels: list[np.ndarray] | None = None) -> None:
        self.images, self.labels = images, labels
        self.places = [
            {int(value): np.argwhere(label == value) for value in np.unique(label) if value} for label in labels or []
        ]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        return self.images[index][None]

    def label(self, index: int) -> np.ndarray | None:
        return None if self.labels is None else self.labels[index]

    def tissue(self, index: int) -> float:
        return 0.0

    def slice_tissue(self, index: int) -> np.ndarray:
        return (self.images[index] > 0).mean(axis=(0, 1))

    def points(self, index: int) -> dict[int, np.ndarray]:
        return self.places[index]


def data(**changes: Any) -> DataSection:
    return DataSection(role="brain", modality="mr", labels={1: "one", 2: "two"}, **{**THREE, **changes})


@pytest.mark.parametrize(("dims", "shape"), [(THREE, (1, 16, 16, 16)), (TWO, (1, 16, 16))])
def test_image_crops_have_the_crops_shape_and_are_copies(dims: dict[str, Any], shape: tuple[int, ...]) -> None:
    source = Memory([np.ones((20, 24, 18), dtype=np.float32)])
    crop = image_crop(source, np.random.default_rng(0), data(**dims))
    assert crop.shape == shape
    assert crop.dtype == torch.float32
    assert crop.is_contiguous()
    crop.zero_()
    assert source.images[0].min() == 1.0


def test_equal_generators_give_equal_crops() -> None:
    rng = np.random.default_rng(3)
    source = Memory([rng.normal(size=(40, 40, 10)).astype(np.float32) for _ in range(3)])
    one, two = (image_crop(source, np.random.default_rng(7), data(**TWO)) for _ in range(2))
    other = image_crop(source, np.random.default_rng(8), data(**TWO))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_image_crops_hold_enough_tissue() -> None:
    # tissue fills the first 24 of 64 columns of slices 3 and 4 only
    image = np.full((64, 64, 8), -1.0, dtype=np.float32)
    image[:24, :, 3:5] = 1.0
    rng = np.random.default_rng(0)
    shares = [
        float((image_crop(Memory([image]), rng, data(**TWO, min_foreground=0.3)) > 0).float().mean())
        for _ in range(200)
    ]
    # a position is good with probability 20/49, so that ten tries fail in 0.5 % of the crops
    assert np.mean(np.array(shares) >= 0.3) > 0.97


def test_without_enough_tissue_anywhere_the_fullest_place_is_taken() -> None:
    image = np.full((16, 16, 8), -1.0, dtype=np.float32)
    image[:2, :2, 5] = 1.0
    crop = image_crop(Memory([image]), np.random.default_rng(0), data(**TWO, min_foreground=0.5))
    assert int((crop > 0).sum()) == 4


def test_every_volume_slice_and_corner_is_reached() -> None:
    x, y, z = np.meshgrid(np.arange(18), np.arange(17), np.arange(3), indexing="ij")
    source = Memory([(1 + x + 100 * y + 10000 * z + 100000 * v).astype(np.float32) for v in range(2)])
    rng = np.random.default_rng(0)
    corners = {int(image_crop(source, rng, data(**TWO))[0, 0, 0]) - 1 for _ in range(600)}
    expected = {
        a + 100 * b + 10000 * c + 100000 * v for a in range(3) for b in range(2) for c in range(3) for v in (0, 1)
    }
    assert corners == expected


def labelled_source(shape: tuple[int, int, int] = (48, 48, 12)) -> Memory:
    label = np.zeros(shape, dtype=np.uint8)
    label[20:30, 20:30, 4:8] = 1
    label[40, 40, 6] = 2
    return Memory([label.astype(np.float32) * 10 + 1], [label])


@pytest.mark.parametrize("dims", [TWO, {"spatial_dims": 3, "crop": (16, 16, 12)}])
def test_labelled_crops_keep_image_and_label_together(dims: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        image, label = labelled_crop(labelled_source(), rng, data(**dims), foreground_share=0.5)
        assert image.shape == label.shape == (1, *dims["crop"])
        assert label.dtype == torch.int64
        assert torch.equal(image, label.float() * 10 + 1)


def test_centred_crops_show_each_structure_equally_often() -> None:
    rng = np.random.default_rng(0)
    centres, source = [], labelled_source()
    for _ in range(300):
        _, label = labelled_crop(source, rng, data(**TWO), foreground_share=1.0)
        assert label.any(), "a centred crop holds its voxel"
        centres.append(int((label == 2).any()))
    # structure 2 is one voxel and structure 1 has 400, yet each is chosen half of the time; the
    # other half never contains voxel (40, 40), which lies 11 or more from structure 1
    assert 0.4 < np.mean(centres) < 0.6


def test_a_centred_crop_has_its_voxel_in_the_middle() -> None:
    label = np.zeros((48, 48, 3), dtype=np.uint8)
    label[20, 31, 1] = 1
    source = Memory([label.astype(np.float32)], [label])
    _, crop = labelled_crop(source, np.random.default_rng(0), data(**TWO), foreground_share=1.0)
    assert crop[0].nonzero().tolist() == [[8, 8]]


def test_the_share_of_uncentred_crops_is_kept() -> None:
    label = np.zeros((200, 200, 20), dtype=np.uint8)
    label[100, 100, 10] = 1
    source = Memory([label.astype(np.float32)], [label])
    rng = np.random.default_rng(0)
    hits = [bool(labelled_crop(source, rng, data(**TWO), foreground_share=0.67)[1].any()) for _ in range(600)]
    assert np.mean(hits) == pytest.approx(0.67, abs=0.06)


def test_a_case_without_structures_is_cropped_anywhere() -> None:
    label = np.zeros((20, 20, 4), dtype=np.uint8)
    _, crop = labelled_crop(
        Memory([label.astype(np.float32)], [label]), np.random.default_rng(0), data(**TWO), foreground_share=1.0
    )
    assert crop.shape == (1, 16, 16)


def test_labels_are_required() -> None:
    with pytest.raises(ValueError, match="labels"):
        labelled_crop(
            Memory([np.ones((20, 20, 4), dtype=np.float32)]),
            np.random.default_rng(0),
            data(**TWO),
            foreground_share=0.5,
        )


def test_tissue_share_estimates_large_crops_closely() -> None:
    crop = np.random.default_rng(0).random((96, 96, 96))
    assert tissue_share(crop, 0.7) == pytest.approx(0.3, abs=0.03)
    assert tissue_share(crop[:8, :8, 0] * 0 + 1, 0.5) == 1.0


def test_crops_of_mapped_volumes_are_fast(hospital: Any) -> None:
    hospital.datalist(training=[hospital.case(f"p{n}", seed=n, shape=(128, 128, 9)) for n in range(3)])
    volumes = hospital.volumes(spatial_dims=2, crop=(96, 96))
    rng, section = np.random.default_rng(0), hospital.experiment(spatial_dims=2, crop=(96, 96)).data
    times = []
    for _ in range(200):
        start = time.perf_counter()
        image_crop(volumes, rng, section)
        labelled_crop(volumes, rng, section, foreground_share=0.67)
        times.append(time.perf_counter() - start)
    # two crops in well below a millisecond, with room for a busy machine
    assert np.median(times) < 1e-3
