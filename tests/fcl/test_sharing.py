"""Which tensors are shared under which names, and how the momentum encoder follows."""

import torch

from fedmedseg.fcl.sharing import ContrastiveNetwork, follow, momentum_network
from fedmedseg.segmentation.starts import initial_network


def test_the_encoder_starts_from_the_weights_that_fine_tuning_from_scratch_starts_from(study) -> None:
    experiment = study()
    network, segmentation = ContrastiveNetwork(experiment=experiment), initial_network(experiment).state_dict()
    encoder = {name: tensor for name, tensor in network.shared().items() if not name.startswith("projector.")}
    assert encoder
    assert all(torch.equal(tensor, segmentation[name]) for name, tensor in encoder.items())
    assert sorted(name for name in network.shared() if name not in encoder) == [
        "projector.first.bias", "projector.first.weight", "projector.last.bias", "projector.last.weight",
    ]  # fmt: skip


def test_running_statistics_of_batch_norm_are_shared_and_counters_are_not(study) -> None:
    network = ContrastiveNetwork(experiment=study(network={"norm": "batch"}, projector={"out": 4, "norm": True}))
    names = set(network.shared())
    assert "projector.norm.running_mean" in names
    assert any(name.startswith("down_1") and name.endswith("running_var") for name in names)
    assert not [name for name in names if name.endswith("num_batches_tracked")]


def test_features_have_length_one(study) -> None:
    network = ContrastiveNetwork(experiment=study())
    features = network(torch.randn(3, 1, 16, 16))
    assert features.shape == (3, 4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_loading_goes_into_the_network_and_shared_is_a_copy(study) -> None:
    network = ContrastiveNetwork(experiment=study())
    moved = {name: tensor + 1 for name, tensor in network.shared().items()}
    network.load_shared({**moved, "more": torch.zeros(1)})
    assert all(torch.equal(tensor, moved[name]) for name, tensor in network.shared().items())


def test_the_momentum_encoder_follows_by_one_minus_m_and_takes_no_gradient(study) -> None:
    network = ContrastiveNetwork(experiment=study())
    key = momentum_network(network)
    before = key.shared()
    network.load_shared({name: tensor + 1 for name, tensor in network.shared().items()})
    follow(key, network, 0.75)
    for name, tensor in key.shared().items():
        torch.testing.assert_close(tensor, before[name] + 0.25)
    assert not any(parameter.requires_grad for parameter in key.parameters())
