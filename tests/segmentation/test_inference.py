"""Sliding-window prediction: shapes, probabilities, and equality with one forward pass where windows do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedmedseg.core.errors import DataError
from fedmedseg.segmentation.inference import label_map, predict


def test_slices_of_a_2d_network_are_predicted_as_if_alone(make_experiment):
    # a 1 x 1 convolution does not see its surroundings, so windows must not change its result
    data = make_experiment().data
    net = nn.Conv2d(1, 3, 1)
    image = np.random.default_rng(0).normal(size=(1, 70, 50, 5)).astype(np.float32)
    result = predict(net, image, data, 0.5, "cpu")
    assert result.shape == (3, 70, 50, 5)
    with torch.no_grad():
        expected = net(torch.from_numpy(image).permute(3, 0, 1, 2)).softmax(1).permute(1, 2, 3, 0)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_a_3d_network_sees_the_volume(make_experiment):
    data = make_experiment(
        data={"spatial_dims": 3, "crop": [64, 32, 32], "phantom": {"family": "cardiac_ct"}, "modality": "ct"}
    ).data
    net = nn.Conv3d(1, 2, 1)
    image = torch.rand(1, 66, 40, 33)
    result = predict(net, image, data, 0.25, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(result, net(image[None]).softmax(1)[0], atol=1e-5, rtol=0)


def test_with_whole_depth_every_window_has_all_slices(make_experiment):
    data = {"spatial_dims": 3, "crop": [64, 32, 32], "phantom": {"family": "cardiac_ct"}, "modality": "ct"}
    seen = []

    class Net(nn.Module):
        def forward(self, windows):
            seen.append(tuple(windows.shape[2:]))
            return torch.cat([windows, -windows], dim=1)

    for whole_depth in (False, True):
        experiment = make_experiment(data={**data, "whole_depth": whole_depth})
        assert predict(Net(), torch.rand(1, 66, 40, 70), experiment.data, 0.25, "cpu").shape == (2, 66, 40, 70)
    assert set(seen) == {(64, 32, 32), (64, 32, 70)}


def test_probabilities_sum_to_one_where_windows_disagree(make_experiment):
    torch.manual_seed(0)
    net = nn.Conv2d(1, 4, 9, padding=4)
    result = predict(net, torch.randn(1, 90, 70, 2), make_experiment().data, 0.5, "cpu")
    torch.testing.assert_close(result.sum(0), torch.ones(90, 70, 2), atol=1e-5, rtol=0)
    assert result.min() >= 0


def test_a_volume_smaller_than_the_crop_keeps_its_size(make_experiment):
    assert predict(nn.Conv2d(1, 2, 1), torch.zeros(1, 20, 20, 3), make_experiment().data, 0.5, "cpu").shape == (
        2,
        20,
        20,
        3,
    )


def test_training_mode_gradients_and_the_result_are_left_usable(make_experiment):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9))
    net.train()
    image = torch.randn(1, 64, 32, 1)
    first, second = (predict(net, image, make_experiment().data, 0.0, "cpu") for _ in range(2))
    assert net.training
    torch.testing.assert_close(first, second)
    assert not first.is_inference()


def test_label_map_takes_the_most_probable_class():
    probabilities = torch.tensor([[0.2, 0.6], [0.5, 0.1], [0.3, 0.3]]).reshape(3, 2, 1, 1)
    labels = label_map(probabilities)
    assert labels.dtype == np.uint8
    assert labels.reshape(-1).tolist() == [1, 0]


def test_label_map_is_argmax_of_equals_the_first():
    probabilities = torch.randint(3, (5, 8, 8, 4), generator=torch.Generator().manual_seed(0)) / 2
    probabilities[:, 0] = 0.0
    probabilities[3, 1] = torch.nan
    np.testing.assert_array_equal(label_map(probabilities), probabilities.argmax(dim=0).numpy())
    np.testing.assert_array_equal(label_map(probabilities)[0], 0)


@pytest.mark.parametrize("shape", [(64, 64, 3), (2, 64, 64, 3)])
def test_anything_but_one_channel_and_three_axes_is_refused(make_experiment, shape):
    with pytest.raises(DataError, match="image"):
        predict(nn.Conv2d(1, 2, 1), torch.zeros(shape), make_experiment().data, 0.5, "cpu")
