"""What crosses the wire under each strategy, and what never does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.wire import Schema
from fedmedseg.fedavg.plan import copies, initial_shared, stages, work
from fedmedseg.fedavg.sharing import CONTROL, SERVER, STEP, shared_part
from fedmedseg.segmentation.starts import initial_network

Study = Callable[..., Experiment]
SGD = {"learning_rate": 0.05}


def test_fedavg_shares_the_whole_network_with_its_running_statistics(study: Study) -> None:
    experiment = study()
    network, shared = initial_network(experiment), initial_shared(experiment)
    floating = {name for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    assert shared.keys() == floating
    assert any(name.endswith("running_var") for name in shared)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in shared.items())
    for stage, contract in stages(experiment).items():
        assert contract.sends == "shared", stage
        assert contract.sent_in(0).of(shared).keys() == shared.keys()


def test_fedbn_keeps_norms_by_their_type_and_never_by_their_name(study: Study) -> None:
    experiment = study(fedavg={"strategy": "fedbn"})
    network, shared = initial_network(experiment), initial_shared(experiment)
    norms = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for part in module.state_dict()
    }
    assert norms
    assert not norms & shared.keys()
    assert shared.keys() | norms == network.state_dict().keys()
    assert not any("bn" in name for name in norms), "the test of other packages would have kept none"


def test_fedbn_refuses_a_network_without_a_norm_of_its_own(study: Study) -> None:
    experiment = study(fedavg={"strategy": "fedbn"})
    with pytest.raises(ConfigurationError, match="personal layers"):
        shared_part(torch.nn.Conv2d(1, 1, 1), experiment)


def test_scaffold_sends_a_control_variate_for_every_parameter_in_training_alone(study: Study) -> None:
    experiment = study(fedavg={"strategy": "scaffold", "sgd": SGD})
    shared = initial_shared(experiment)
    controls = {name.removeprefix(CONTROL): tensor for name, tensor in shared.items() if name.startswith(CONTROL)}
    parameters = dict(initial_network(experiment).named_parameters())
    assert {name: tensor.shape for name, tensor in controls.items()} == {n: p.shape for n, p in parameters.items()}
    assert not any(bool(tensor.any()) for tensor in controls.values())
    contracts = stages(experiment)
    assert contracts["training"].returned_in(0).of(shared).keys() == shared.keys()
    assert not any(name.startswith(CONTROL) for name in contracts["evaluation"].sent_in(0).of(shared))


@pytest.mark.parametrize(
    ("server", "moments"),
    [
        ({}, 1),
        ({"momentum": 0.0}, 0),
        ({"optimizer": "adam", "learning_rate": 0.1}, 2),
        ({"optimizer": "adagrad", "learning_rate": 0.1}, 1),
    ],
    ids=str,
)
def test_the_servers_optimiser_is_kept_and_never_sent(study: Study, server: dict[str, object], moments: int) -> None:
    experiment = study(fedavg={"strategy": "fedopt", "server": server})
    shared = initial_shared(experiment)
    own = [name for name in shared if name.startswith(SERVER)]
    assert len(own) == moments * len(list(initial_network(experiment).parameters())) + 1
    assert STEP in own
    for contract in stages(experiment).values():
        assert not any(name in contract.sent_in(0).of(shared) for name in own)
    returned = stages(experiment)["training"].returned_in(0).of(shared)
    assert returned.keys() == shared.keys() - set(own)
    assert Schema(shared).problem(shared) is None


def test_ditto_sends_later_stages_nothing(study: Study) -> None:
    contracts = stages(study(fedavg={"strategy": "ditto"}))
    assert [contract.sends for contract in contracts.values()] == ["shared", "nothing", "nothing"]


def test_ditto_trains_twice_and_keeps_more(study: Study) -> None:
    plain, ditto = study(), study(fedavg={"strategy": "ditto"})
    assert work(ditto)["training"] == 2 * work(plain)["training"] == 4
    assert copies(ditto)["network"] > copies(plain)["network"]
