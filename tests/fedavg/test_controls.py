"""SCAFFOLD's corrections and control variates, by hand, over FLARE's helper."""

from __future__ import annotations

import pytest
import torch
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper

from fedmedseg.fedavg.controls import ControlVariates


class Two(torch.nn.Module):
    """Two numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(values))


def variates(network: Two, *, own: list[float] | None, common: list[float]) -> ControlVariates:
    return ControlVariates(
        helper=PTScaffoldHelper(),
        network=network,
        own={} if own is None else {"w": torch.tensor(own)},
        common={"w": torch.tensor(common)},
    )


def test_a_step_is_corrected_by_the_difference_of_the_control_variates() -> None:
    network = Two(1.0, 2.0)
    variates(network, own=[0.5, 0.0], common=[0.1, 0.2]).correct(0.1)
    # y - rate * (c - c_i)
    assert network.w.tolist() == pytest.approx([1.0 - 0.1 * -0.4, 2.0 - 0.1 * 0.2])


def test_without_drift_a_step_stays_as_it_is() -> None:
    network = Two(1.0, 2.0)
    variates(network, own=[0.3, 0.3], common=[0.3, 0.3]).correct(0.1)
    assert network.w.tolist() == [1.0, 2.0]


def test_new_control_variates_are_the_way_gone_divided_by_the_rates() -> None:
    """Option II, with two steps of different rates: c_i - c + (x - y) / 0.4."""
    received, network = Two(1.0, 2.0), Two(1.0, 2.0)
    made = variates(network, own=[0.5, 0.0], common=[0.1, 0.2])
    for rate in (0.1, 0.3):
        with torch.no_grad():
            network.w -= rate * torch.tensor([1.0, -1.0])
        made.correct(rate)
    own, change = made.renewed(received)
    # each step went down gradient + c - c_i, so that what remains is the mean gradient
    assert own["w"].tolist() == pytest.approx([1.0, -1.0], abs=1e-5)
    assert change["w"].tolist() == pytest.approx([0.5, -1.0], abs=1e-5)


def test_a_round_that_was_cut_goes_on_to_the_same_numbers() -> None:
    ends = []
    for cut in (False, True):
        received, network = Two(1.0, 2.0), Two(1.0, 2.0)
        made = variates(network, own=None, common=[0.1, 0.2])
        for step, rate in enumerate((0.1, 0.3)):
            if cut and step == 1:
                tree = made.state()
                made = variates(network, own=None, common=[0.1, 0.2])
                made.restore(tree)
            with torch.no_grad():
                network.w -= rate
            made.correct(rate)
        ends.append(made.renewed(received)[0]["w"])
    assert torch.equal(*ends)
