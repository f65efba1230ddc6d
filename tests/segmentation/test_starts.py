"""Starts differ in the encoder and in nothing else."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.networks.factory import encoder_names
from fedmedseg.segmentation.starts import encoder_tensors, initial_network


def test_the_initial_network_depends_on_the_seed_alone_and_leaves_the_generators(make_experiment):
    torch.manual_seed(1)
    first = initial_network(make_experiment()).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    second = initial_network(make_experiment()).state_dict()
    other = initial_network(make_experiment(seed=2)).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_only_encoder_tensors_are_taken(make_experiment):
    experiment = make_experiment()
    network = initial_network(experiment)
    names, initial = encoder_names(network, experiment), network.state_dict()
    given = {name: initial[name] + 1 for name in names} | {
        "mask_token": torch.zeros(12),
        "predictor.0.bias": torch.ones(2),
    }
    taken = encoder_tensors(given, names, initial, source="shared")
    assert sorted(taken) == sorted(names)
    assert torch.equal(taken[names[0]], initial[names[0]] + 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors, name: tensors.pop(name), Reason.MISSING_TENSORS),
        (lambda tensors, name: tensors.update({name: torch.zeros(3, 3)}), Reason.TENSOR_SHAPE),
        (lambda tensors, name: tensors.update({name: tensors[name].half()}), Reason.TENSOR_TYPE),
        (lambda tensors, name: tensors.update({name: tensors[name] / 0}), Reason.NOT_FINITE),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(make_experiment, change, reason):
    experiment = make_experiment()
    network = initial_network(experiment)
    names, initial = encoder_names(network, experiment), network.state_dict()
    given = {name: initial[name] for name in names}
    change(given, names[0])
    with pytest.raises(FedMedSegError) as caught:
        encoder_tensors(given, names, initial, source="personal")
    assert caught.value.reason == reason
    assert "personal encoder" in caught.value.field
