"""Shared, personal and local tensors are chosen by module, and a choice that matches nothing is refused."""

from __future__ import annotations

import pytest
from monai.networks.nets import UNet
from torch import nn

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.partition import partition


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))


def test_everything_is_shared_by_default_except_integer_buffers_and_statistics() -> None:
    split = partition(small())
    assert split.shared == ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
    assert split.personal == ()
    assert split.local == ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def test_running_statistics_are_shared_only_on_request_and_counters_never() -> None:
    split = partition(small(), buffers=True)
    assert "1.running_mean" in split.shared
    assert split.local == ("1.num_batches_tracked",)


def test_personal_types_keep_batch_norm_at_home_with_its_statistics() -> None:
    split = partition(small(), personal_types=(nn.BatchNorm2d,), buffers=True)
    assert split.personal == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert split.shared == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_a_head_outside_the_shared_part_is_local() -> None:
    split = partition(small(), within=("0", "1"), personal_types=(nn.BatchNorm2d,))
    assert split.shared == ("0.weight", "0.bias")
    assert "2.weight" in split.local


def test_an_excluded_submodule_is_local() -> None:
    assert partition(small(), without=("2",)).shared == ("0.weight", "0.bias", "1.weight", "1.bias")


def test_the_three_sets_are_disjoint_and_cover_the_network() -> None:
    model = small()
    split = partition(model, within=("0", "1"), personal_modules=("1",))
    names = [*split.shared, *split.personal, *split.local]
    assert sorted(names) == sorted(model.state_dict())
    assert len(set(names)) == len(names)


def test_monai_norms_are_found_by_type_although_no_name_says_so() -> None:
    model = UNet(2, 1, 2, (4, 8), (2,), norm="batch")
    assert not [name for name in model.state_dict() if "bn" in name]
    assert partition(model, personal_types=(nn.BatchNorm2d,)).personal


def test_a_type_that_matches_nothing_is_refused() -> None:
    model = UNet(2, 1, 2, (4, 8), (2,), norm="instance")  # without affine parameters: nothing to keep
    with pytest.raises(ConfigurationError, match="personal layers"):
        partition(model, personal_types=(nn.BatchNorm2d,))


def test_an_unknown_submodule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match="write 'encoder'"):
        partition(nn.ModuleDict({"encoder": nn.Linear(1, 1)}), within=("encodr",))


def test_sharing_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="shared layers"):
        partition(small(), without=("0", "1", "2"))
