"""Augmentation: image and label change alike, nothing else happens, and equal seeds agree."""

import numpy as np
import pytest
import torch

from fedmedseg.data.augmentation import augment


def crop(*shape: int) -> torch.Tensor:
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 6), (4, 6), (4, 6, 8)])
def test_image_and_label_move_together(shape: tuple[int, ...]) -> None:
    for seed in range(30):
        image, label = augment(
            crop(*shape), crop(*shape).long(), np.random.default_rng(seed), flip=0.5, turn=0.5, intensity=0.0
        )
        assert image.shape == (1, *shape)
        assert image.is_contiguous()
        assert label.is_contiguous()
        assert torch.equal(image.long(), label)
        assert torch.equal(image.flatten().sort().values, crop(*shape).flatten())


def test_nothing_happens_with_probability_zero() -> None:
    image, label = augment(crop(4, 4), None, np.random.default_rng(0), flip=0.0, turn=0.0, intensity=0.0)
    assert torch.equal(image, crop(4, 4))
    assert label is None


def test_the_given_tensors_are_left_alone() -> None:
    image, label = crop(4, 4), crop(4, 4).long()
    changed, changed_label = augment(image, label, np.random.default_rng(0), flip=0.0, turn=0.0, intensity=0.0)
    changed.zero_()
    changed_label.zero_()
    assert torch.equal(image, crop(4, 4))
    assert torch.equal(label, crop(4, 4).long())


def test_oblong_crops_are_not_turned() -> None:
    for seed in range(20):
        image, _ = augment(crop(4, 6), None, np.random.default_rng(seed), flip=0.0, turn=1.0, intensity=0.0)
        assert torch.equal(image, crop(4, 6))


def test_a_quarter_turn_is_numpys() -> None:
    image, _ = augment(crop(4, 4, 2), None, np.random.default_rng(1), flip=0.0, turn=1.0, intensity=0.0)
    turned = [np.rot90(crop(4, 4, 2).numpy(), turns, (1, 2)) for turns in (1, 2, 3)]
    assert any(np.array_equal(image.numpy(), one) for one in turned)


def test_frequencies_are_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    untouched = sum(
        torch.equal(augment(crop(4, 4), None, rng, flip=0.2, turn=0.2, intensity=0.1)[0], crop(4, 4))
        for _ in range(1500)
    )
    # 0.8^2 without flips, 0.8 without a turn, 0.9^2 with intensities kept: 0.415; both flips and
    # a half turn together give the original again: 0.04 x 0.2 / 3 x 0.81 more
    assert untouched / 1500 == pytest.approx(0.8**3 * 0.81 + 0.04 * 0.2 / 3 * 0.81, abs=0.035)


def test_intensities_stay_within_a_tenth() -> None:
    for seed in range(50):
        image, _ = augment(torch.full((1, 4, 4), 2.0), None, np.random.default_rng(seed), intensity=1.0)
        assert 2.0 * 0.9 - 0.1 <= float(image.mean()) <= 2.0 * 1.1 + 0.1
        assert float(image.std()) < 1e-6


def test_hounsfield_units_are_kept() -> None:
    for seed in range(20):
        image, _ = augment(
            crop(4, 4), None, np.random.default_rng(seed), modality="ct", flip=0.0, turn=0.0, intensity=1.0
        )
        assert torch.equal(image, crop(4, 4))


def test_equal_seeds_agree() -> None:
    one, two = (augment(crop(4, 4), None, np.random.default_rng(5), flip=0.5)[0] for _ in range(2))
    assert torch.equal(one, two)
