"""Augmentation: image and label change alike, nothing else happens, and equal seeds agree."""

import numpy as np
import pytest
import torch

from fedmedseg.data.augmentation import VIEWS, augment, augmented, deform, smoothed, tilt


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


def test_a_deformation_moves_image_and_label_alike_and_all_slices_alike() -> None:
    """A disc seen in every slice: the deformed image, cut at a half, is the deformed label in every slice."""
    x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(48) - 23.5, indexing="ij")
    disc = torch.from_numpy(((x - 8) ** 2 + y**2 < 81).astype(np.float32))[None, :, :, None].repeat(1, 1, 1, 3)
    moved_somewhere = 0
    for seed in range(8):
        image, label = deform(disc, disc.long(), np.random.default_rng(seed))
        assert image.shape == label.shape == disc.shape
        assert label.dtype == torch.int64
        differing = ((image > 0.5).long() != label).float().mean()
        assert differing < 0.01, "they differ by the rounding at the edge alone"
        assert torch.equal(label[..., 0], label[..., 2])
        # scales are 0.75 to 1.25, so areas are 0.64 to 1.78 of what they were, and the elastic field adds a little
        assert 0.4 < float(label.sum()) / float(disc.sum()) < 2.5
        moved_somewhere += not torch.equal(label, disc.long())
    assert moved_somewhere == 8


@pytest.mark.parametrize(("shape", "sigma"), [((40, 24), 15.3), ((64, 64), 3.0)])
def test_smoothing_is_scipys(shape: tuple[int, int], sigma: float) -> None:
    from scipy.ndimage import gaussian_filter

    fields = np.random.default_rng(2).uniform(-1.0, 1.0, size=(2, *shape))
    expected = [gaussian_filter(field, sigma, mode="constant") for field in fields]
    np.testing.assert_allclose(smoothed(fields, sigma), expected, atol=1e-12)


def test_an_image_may_be_deformed_alone() -> None:
    image = crop(32, 32)
    alone, none = deform(image, None, np.random.default_rng(4), ranges=VIEWS)
    both, _ = deform(image, image.long(), np.random.default_rng(4), ranges=VIEWS)
    assert none is None
    assert torch.equal(alone, both)
    assert not torch.equal(alone, deform(image, None, np.random.default_rng(4))[0])


def test_from_outside_comes_the_darkest_value_and_background() -> None:
    image, label = deform(torch.full((1, 32, 32, 2), 3.0), torch.ones(1, 32, 32, 2).long(), np.random.default_rng(1))
    torch.testing.assert_close(image, torch.full((1, 32, 32, 2), 3.0))
    assert set(label.unique().tolist()) <= {0, 1}


def test_a_tilt_moves_image_and_label_alike() -> None:
    """A ball whose mask is its label: the moved image, cut at a half of what it then is, is the moved label."""
    places = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for edge in (40, 32, 24)), indexing="ij"))
    ball = torch.from_numpy(((places - np.reshape([6, -4, 2], (3, 1, 1, 1))) ** 2).sum(0) < 36)[None]
    areas = []
    for seed in range(12):
        image, label = tilt(ball.float(), ball.long(), np.random.default_rng(seed))
        assert image.shape == label.shape == ball.shape
        assert label.dtype == torch.int64
        middle = (float(image.min()) + float(image.max())) / 2
        assert ((image > middle).long() != label).float().mean() < 0.005
        areas.append(float(label.sum()) / float(ball.sum()))
    # scales are 0.9 to 1.1 per axis
    assert min(areas) > 0.7
    assert max(areas) < 1.4
    assert len(set(areas)) > 6


def test_a_tilts_turn_scales_and_intensities_stay_in_their_ranges() -> None:
    """Of a ramp along each axis, a + b x, the moved values say by how much: they are linear in the interior."""
    size, middle = 17, (slice(6, 11),) * 3
    places = np.stack(np.meshgrid(*(np.arange(size) - 8.0,) * 3, indexing="ij"))
    empty = torch.zeros(1, size, size, size, dtype=torch.long)
    angles, scales, factors, offsets = [], [], [], []
    for seed in range(40):
        columns = []
        for axis in range(3):
            ramp = torch.from_numpy(places[axis : axis + 1].astype(np.float32))
            moved, _ = tilt(ramp, empty, np.random.default_rng(seed))
            values = moved[0].numpy()[middle]
            design = np.stack([*(places[a][middle].ravel() for a in range(3)), np.ones(values.size)], axis=1)
            columns.append(np.linalg.lstsq(design, values.ravel(), rcond=None)[0])
        one, _ = tilt(torch.ones(1, size, size, size), empty, np.random.default_rng(seed))
        offset = float(np.mean([column[3] for column in columns]))
        factor = float(one.mean()) - offset
        matrix = np.array(columns)[:, :3] / factor
        angles.append(np.arctan2(matrix[1, 0], matrix[0, 0]))
        scales += [*np.linalg.norm(matrix, axis=0)]
        factors.append(factor)
        offsets.append(offset)
        assert np.abs(matrix[2, :2]).max() < 1e-3, "the turn is about z"
    for found, low, high in (
        (angles, -np.pi / 15, np.pi / 15),
        (scales, 0.9, 1.1),
        (factors, 0.9, 1.1),
        (offsets, -0.1, 0.1),
    ):
        assert min(found) >= low - 1e-3
        assert max(found) <= high + 1e-3
        assert max(found) - min(found) > 0.7 * (high - low), "all of the range is used"


def test_a_tilt_changes_slices_too() -> None:
    image, label = tilt(crop(16, 12), (crop(16, 12) > 90).long(), np.random.default_rng(2))
    assert image.shape == label.shape == (1, 16, 12)
    assert not torch.equal(image, crop(16, 12))


def test_the_setting_chooses_how_crops_are_changed() -> None:
    image, label = crop(16, 16, 2), (crop(16, 16, 2) > 200).long()
    flips = augmented(image, label, np.random.default_rng(5), kind="flips", modality="mr")
    elastic = augmented(image, label, np.random.default_rng(5), kind="elastic", modality="mr")
    assert torch.equal(flips[0], augment(image, label, np.random.default_rng(5), modality="mr")[0])
    assert torch.equal(elastic[0], deform(image, label, np.random.default_rng(5))[0])
    affine = augmented(image, label, np.random.default_rng(5), kind="affine", modality="ct")
    assert torch.equal(affine[0], tilt(image, label, np.random.default_rng(5))[0])
    assert len({one[0].numpy().tobytes() for one in (flips, elastic, affine)}) == 3
