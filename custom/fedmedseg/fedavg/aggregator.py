"""The server's rule of each strategy: the mean, a step of an optimiser along it, or the mean with control variates."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from nvflare.app_opt.pt.fedopt import PTFedOptModelShareableGenerator
from torch import nn

from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.config import load_experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.fedavg.config import ServerSection
from fedmedseg.fedavg.sharing import CONTROL, SERVER, STEP, moments
from fedmedseg.segmentation.starts import initial_network

Tensors = Mapping[str, torch.Tensor]


class ServerOptimizer(PTFedOptModelShareableGenerator):
    """FLARE's server update (Reddi et al. 2021), whose optimiser goes on from tensors.

    FLARE's lives in one process and begins anew when a server is killed. Parameters take the optimiser's step, running
    statistics the mean, as there.

    Args:
        model: the study's network; its weights are overwritten.
        section: ``fedavg.server``.
    """

    def __init__(self, model: nn.Module, section: ServerSection) -> None:
        super().__init__(optimizer_args={"path": section.optimizer}, source_model=model, device=torch.device("cpu"))
        self.section = section
        self.model = model
        self.optimizer = build(model, section)

    def step(self, whole: Tensors, mean: Tensors) -> dict[str, torch.Tensor]:
        """Parameters and state after one step along ``mean``, from what ``whole`` holds of both; by their names."""
        parameters = dict(self.model.named_parameters())
        number = whole[STEP] + 1.0
        for name, parameter in parameters.items():
            parameter.data.copy_(whole[name])
            kept = {moment: whole[f"{SERVER}{moment}.{name}"].clone() for moment in moments(self.section)}
            self.optimizer.state[parameter] = {**kept, "step": whole[STEP][0].clone()}
        with warnings.catch_warnings():
            # FLARE copies what it is given through torch.tensor, whether it is one or not
            warnings.simplefilter("ignore", UserWarning)
            self.server_update({name: mean[name] for name in parameters})
        after = {STEP: number}
        for name, parameter in parameters.items():
            after[name] = parameter.detach().clone()
            for moment in moments(self.section):
                after[f"{SERVER}{moment}.{name}"] = self.optimizer.state[parameter][moment].detach().clone()
        return after


def build(model: nn.Module, section: ServerSection) -> torch.optim.Optimizer:
    """The optimiser that ``section`` names."""
    parameters, rate = model.parameters(), section.learning_rate
    if section.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=section.momentum)
    if section.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, betas=section.betas, eps=section.epsilon)
    return torch.optim.Adagrad(parameters, lr=rate, eps=section.epsilon)


class StrategyAggregator(GuardedAggregator):
    """FedAvg's mean, with what ``fedavg.strategy`` makes of it at the server.

    The state of ``fedopt``'s optimiser is among the shared tensors, which the server's checkpoint holds and no site is
    sent. Under ``scaffold`` the common control variates move by the mean change of those heard, times their share of
    all sites heard so far in the stage (Karimireddy et al. 2020, |S| / N); ``notes`` hold these as ``heard``.

    Args:
        experiment_file: path of experiment.yaml; its ``fedavg`` section chooses the strategy.
    """

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self._experiment = load_experiment(experiment_file)
        self._section = self._experiment.wing
        self._optimizer: ServerOptimizer | None = None
        self._heard: frozenset[str] = frozenset()

    @property
    def needs_plain(self) -> str:
        """What is more than a mean needs the differences themselves."""
        strategy = self._section.strategy
        return f"fedavg.strategy {strategy} reads the sites' differences" if strategy in ("fedopt", "scaffold") else ""

    def behind(
        self, history: Sequence[Mapping[str, Any]], *, stage: str, number: int, sites: Collection[str]
    ) -> Collection[str]:
        """Nobody; but the history says who was heard in this stage, also before a server was killed."""
        earlier = [record for record in history if record["stage"] == stage and record["round"] < number]
        self._heard = frozenset(site for record in earlier for site in record["notes"].get("heard", ()))
        return ()

    def combine(
        self,
        shared: Mapping[str, torch.Tensor],
        contributions: Mapping[str, Contribution],
        weights: Mapping[str, float],
    ) -> Mapping[str, torch.Tensor]:
        """Differences to the shared tensors; what the server's optimiser moves goes to ``replaced``."""
        mean = self.mean({site: one.differences for site, one in contributions.items()}, weights)
        if self._section.strategy == "fedopt":
            assert self.round is not None, "open_round was not called"
            if self._optimizer is None:
                self._optimizer = ServerOptimizer(initial_network(self._experiment), self._section.server)
            self.replaced = self._optimizer.step(self.round.whole, mean)
        if self._section.strategy == "scaffold":
            heard = self._heard | set(contributions)
            self.notes["heard"] = sorted(heard)
            share = len(contributions) / len(heard)
            mean |= {name: share * tensor for name, tensor in mean.items() if name.startswith(CONTROL)}
        return mean

    def comparable(self, names: Iterable[str]) -> list[str]:
        """The network alone: control variates have another scale."""
        return [name for name in names if not name.startswith(CONTROL)]
