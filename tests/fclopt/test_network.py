"""Online and target network: names, what follows what, and what is never predicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.fclopt.network import (
    BootstrapNetwork,
    TargetNetwork,
    copy_into,
    floating,
    follow,
    from_wire,
    parameters_of,
    to_wire,
)
from fedmedseg.networks.factory import build_segmentation, encoder_names


@pytest.fixture
def pair(study: Callable[..., Experiment]) -> tuple[BootstrapNetwork, TargetNetwork]:
    torch.manual_seed(0)
    online = BootstrapNetwork(experiment=study())
    return online, TargetNetwork(online=online)


def test_the_encoders_tensors_are_named_as_in_the_segmentation_network(
    pair: tuple[BootstrapNetwork, TargetNetwork], study: Callable[..., Experiment]
) -> None:
    experiment = study()
    wanted = set(encoder_names(build_segmentation(experiment), experiment))
    heads = {name for name in floating(pair[0]) if name.startswith(("projector.", "predictor."))}
    assert set(floating(pair[0])) - heads == wanted
    assert not [name for name in floating(pair[0]) if "num_batches_tracked" in name]


def test_shapes(pair: tuple[BootstrapNetwork, TargetNetwork]) -> None:
    images = torch.randn(3, 1, 32, 32)
    projections, predictions = pair[0](images)
    assert projections.shape == predictions.shape == pair[1](images).shape == (3, 4)


def test_the_target_starts_as_a_copy_and_gets_no_gradient(pair: tuple[BootstrapNetwork, TargetNetwork]) -> None:
    online, target = pair
    images = torch.randn(3, 1, 32, 32)
    assert torch.equal(online(images)[0], target(images))
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert set(parameters_of(target)) == {name for name in parameters_of(online) if not name.startswith("predictor.")}


def test_the_target_follows_by_its_momentum_and_in_its_parameters_alone(
    pair: tuple[BootstrapNetwork, TargetNetwork],
) -> None:
    online, target = pair
    before = {name: tensor.clone() for name, tensor in floating(target).items()}
    with torch.no_grad():
        for tensor in floating(online).values():
            tensor.add_(1.0)
    follow(target, online, 0.75)
    for name, tensor in floating(target).items():
        moved = 0.25 if name in parameters_of(target) else 0.0
        assert torch.allclose(tensor, before[name] + moved, atol=1e-6), name


def test_copying_leaves_what_is_not_named(pair: tuple[BootstrapNetwork, TargetNetwork]) -> None:
    online, _ = pair
    before = {name: tensor.clone() for name, tensor in floating(online).items()}
    copy_into(online, {"projector.first.bias": torch.full((8,), 9.0), "elsewhere": torch.zeros(1)})
    for name, tensor in floating(online).items():
        assert torch.equal(tensor, torch.full((8,), 9.0) if name == "projector.first.bias" else before[name])


def test_names_on_the_wire_come_back() -> None:
    tensors = {"a": torch.zeros(1), "b.c": torch.ones(1)}
    assert from_wire({**to_wire(tensors), "a": torch.full((1,), 5.0)}) == tensors
