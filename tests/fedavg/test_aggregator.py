"""The server's rules: the mean, a step of an optimiser along it that a killed server continues, control variates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.config import Experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.question import Round
from fedmedseg.core.wire import Schema
from fedmedseg.fedavg.aggregator import StrategyAggregator
from fedmedseg.fedavg.plan import initial_shared, stages
from fedmedseg.fedavg.sharing import CONTROL, SERVER

Tensors = Mapping[str, torch.Tensor]
EXAMPLES = {"site-1": 3, "site-2": 1}


class Server:
    """One study's server: every round a new aggregator, as after a server's death."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.file = folder / f"{experiment.digest}.yaml"
        self.file.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
        self.shared: Tensors = initial_shared(experiment)
        self.history: list[dict[str, Any]] = []

    def round(self, differences: Mapping[str, Tensors]) -> StrategyAggregator:
        rule, number = StrategyAggregator(experiment_file=str(self.file)), len(self.history)
        rule.behind(self.history, stage="training", number=number, sites=list(differences))
        rule.open_round(
            Round.begin(
                run="run",
                stage="training",
                number=number,
                nonce="nonce",
                contract=stages(self.experiment)["training"],
                schema=Schema(self.shared),
                shared=self.shared,
                personal={},
            )
        )
        rule.contributions = {
            site: Contribution(
                site=site, differences=one, examples=EXAMPLES[site], steps=1, train_seconds=0.0, metrics={}
            )
            for site, one in differences.items()
        }
        made = from_shareable(rule.aggregate(FLContext()))
        if made.data_kind == DataKind.WEIGHTS:
            self.shared = made.data
        else:
            self.shared = {**self.shared, **{name: self.shared[name] + one for name, one in made.data.items()}}
        self.history.append({"stage": "training", "round": number, "notes": rule.notes})
        return rule

    def differences(self, number: int) -> dict[str, dict[str, torch.Tensor]]:
        """What two sites might send in round ``number``."""
        draws = torch.Generator().manual_seed(number)
        names = [name for name in self.shared if not name.startswith(SERVER)]
        return {
            site: {name: 0.01 * torch.randn(self.shared[name].shape, generator=draws) for name in names}
            for site in EXAMPLES
        }


@pytest.fixture
def server(study: Callable[..., Experiment], tmp_path: Path) -> Callable[..., Server]:
    return lambda **fedavg: Server(study(fedavg=fedavg), tmp_path)


def reference(
    start: Tensors, rounds: list[Mapping[str, Tensors]], make: Callable[[Any], torch.optim.Optimizer]
) -> Tensors:
    """An optimiser that lives as long as the study, on the parameters alone."""
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    optimizer = make(parameters.values())
    for differences in rounds:
        mean = weighted_mean(differences, {"site-1": 0.75, "site-2": 0.25})
        for name, parameter in parameters.items():
            parameter.grad = -mean[name]
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("section", "make"),
    [
        ({}, lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.6)),
        (
            {"learning_rate": 0.5, "momentum": 0.0},
            lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        ),
        (
            {"optimizer": "adam", "learning_rate": 0.02},
            lambda parameters: torch.optim.Adam(parameters, lr=0.02, betas=(0.9, 0.99), eps=1e-3),
        ),
        (
            {"optimizer": "adagrad", "learning_rate": 0.02},
            lambda parameters: torch.optim.Adagrad(parameters, lr=0.02, eps=1e-3),
        ),
    ],
    ids=["momentum", "plain", "adam", "adagrad"],
)
def test_a_server_that_is_killed_after_each_round_steps_as_one_that_lives(
    server: Callable[..., Server], section: dict[str, Any], make: Any
) -> None:
    one = server(strategy="fedopt", server=section)
    start = dict(one.shared)
    rounds = [one.differences(number) for number in range(3)]
    for differences in rounds:
        one.round(differences)
    trained = {name for name, _ in _parameters(one.experiment)}
    expected = reference({name: start[name] for name in trained}, rounds, make)
    for name, tensor in expected.items():
        assert torch.allclose(one.shared[name], tensor, rtol=0, atol=1e-7), name
        assert not torch.equal(tensor, start[name])
    assert one.shared["server.step"].tolist() == [3.0]


def _parameters(experiment: Experiment) -> Any:
    from fedmedseg.segmentation.starts import initial_network

    return initial_network(experiment).named_parameters()


def test_running_statistics_take_the_mean_and_no_step(server: Callable[..., Server]) -> None:
    one = server(strategy="fedopt", server={"optimizer": "adam", "learning_rate": 0.5})
    before, differences = dict(one.shared), one.differences(0)
    one.round(differences)
    mean = weighted_mean(differences, {"site-1": 0.75, "site-2": 0.25})
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert statistics
    for name in statistics:
        assert torch.equal(one.shared[name], before[name] + mean[name])


def test_a_plain_step_of_rate_1_is_fedavg(server: Callable[..., Server]) -> None:
    plain, opt = server(), server(strategy="fedopt", server={"momentum": 0.0})
    differences = plain.differences(0)
    plain.round(differences)
    opt.round(differences)
    for name, tensor in plain.shared.items():
        assert torch.allclose(opt.shared[name], tensor, rtol=0, atol=1e-7)


def test_control_variates_move_by_the_share_of_sites_that_was_heard(server: Callable[..., Server]) -> None:
    one = server(strategy="scaffold", sgd={"learning_rate": 0.1})
    first, second = one.differences(0), one.differences(1)
    rule = one.round(first)
    name = next(name for name in one.shared if name.startswith(CONTROL))
    mean = 0.75 * first["site-1"][name] + 0.25 * first["site-2"][name]
    assert torch.allclose(one.shared[name], mean, rtol=0, atol=1e-8)
    assert rule.notes["heard"] == ["site-1", "site-2"]
    one.round({"site-1": second["site-1"]})
    assert torch.allclose(one.shared[name], mean + second["site-1"][name] / 2, rtol=0, atol=1e-8)
    assert one.history[-1]["notes"]["heard"] == ["site-1", "site-2"]


def test_only_what_is_a_mean_can_be_added_up_unread(server: Callable[..., Server]) -> None:
    reasons = {}
    for strategy, more in (
        ("fedavg", {}),
        ("fedprox", {}),
        ("ditto", {}),
        ("fedbn", {}),
        ("fedopt", {}),
        ("scaffold", {"sgd": {"learning_rate": 0.1}}),
    ):
        one = server(strategy=strategy, **more)
        reasons[strategy] = bool(StrategyAggregator(experiment_file=str(one.file)).needs_plain)
    assert {strategy for strategy, plain in reasons.items() if plain} == {"fedopt", "scaffold"}
