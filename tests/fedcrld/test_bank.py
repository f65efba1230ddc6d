"""The momentum bank: what it starts as, how it follows, what it learns by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from fedmedseg.core.compute import SHIPPED
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.fedcrld.bank import MomentumBank
from fedmedseg.fedcrld.config import AdamSection, BankSection
from fedmedseg.fedcrld.network import RelocalizationNetwork
from fedmedseg.fedcrld.objective import RelocalizationObjective

CPU = torch.device("cpu")


@pytest.fixture
def client() -> RelocalizationNetwork:
    torch.manual_seed(1)
    return RelocalizationNetwork(classes=3, width=8)


def bank_of(client: RelocalizationNetwork, **section: float) -> MomentumBank:
    return MomentumBank(client=client, section=BankSection(**section), adam=AdamSection(learning_rate=1e-3))


def moved(client: RelocalizationNetwork) -> RelocalizationNetwork:
    """Another network, as the client is after some steps."""
    other = copy.deepcopy(client)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return other


def test_it_starts_as_a_copy_of_the_client_with_weights_of_its_own(client: RelocalizationNetwork) -> None:
    bank = bank_of(client)
    own = dict(bank.network.named_parameters())
    for name, parameter in client.named_parameters():
        assert torch.equal(parameter, own[name])
        assert parameter.data_ptr() != own[name].data_ptr()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_it_follows_the_client_by_its_momentum(client: RelocalizationNetwork, momentum: float) -> None:
    bank, ahead = bank_of(client, momentum=momentum), moved(client)
    bank.follow(ahead)
    theirs, old = dict(ahead.named_parameters()), dict(client.named_parameters())
    for name, parameter in bank.network.named_parameters():
        torch.testing.assert_close(parameter, momentum * old[name] + (1 - momentum) * theirs[name], atol=1e-6, rtol=0)


def test_with_a_rate_of_zero_a_step_of_training_leaves_only_what_follows(
    objective: Callable[..., RelocalizationObjective],
) -> None:
    """Row 4: bank = m old + (1 - m) client to 1e-6, after the client's own step."""
    made = objective(bank={"momentum": 0.9, "learning_rate": 0.0})
    assert made.bank is not None
    old = {name: one.detach().clone() for name, one in made.bank.network.named_parameters()}
    made.step(0)
    client = dict(made.network.named_parameters())
    assert any(not torch.equal(old[name], client[name]) for name in old), "the client did a step"
    for name, parameter in made.bank.network.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * old[name] + 0.1 * client[name], atol=1e-6, rtol=0)


def test_it_learns_by_itself_beside_following(objective: Callable[..., RelocalizationObjective]) -> None:
    still, learning = objective(bank={"learning_rate": 0.0}), objective()
    for made in (still, learning):
        torch.manual_seed(3)
        made.step(0)
    assert still.bank is not None
    assert learning.bank is not None
    one, other = dict(still.bank.network.named_parameters()), dict(learning.bank.network.named_parameters())
    assert any(not torch.equal(one[name], other[name]) for name in one)
    same = zip(still.network.parameters(), learning.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same), "the bank's own step comes after the client's"


def test_what_it_says_carries_no_gradient(client: RelocalizationNetwork) -> None:
    outputs = bank_of(client).outputs(torch.randn(1, 1, 16, 16, 2), SHIPPED, CPU)
    assert not any(tensor.requires_grad for tensor in outputs)


def test_a_loss_that_is_no_number_leaves_it_as_it_was(client: RelocalizationNetwork) -> None:
    bank = bank_of(client)
    before = {name: tensor.clone() for name, tensor in bank.network.state_dict().items()}
    with pytest.raises(FedMedSegError) as caught:
        bank.learn(torch.randn(1, 1, 16, 16, 2), lambda p: p.sum() * float("nan"), SHIPPED, CPU)
    assert caught.value.reason == Reason.LOCAL_DIVERGED
    assert all(torch.equal(tensor, before[name]) for name, tensor in bank.network.state_dict().items())
