"""The section: its defaults, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import read_yaml

Study = Callable[..., Experiment]


def test_without_a_word_it_is_fedavg_weighted_by_cases(study: Study) -> None:
    wing = study().wing
    assert (wing.strategy, wing.weights, wing.candidates, wing.sgd) == ("fedavg", "cases", "received", None)
    assert wing.receives
    assert not study(fedavg={"strategy": "ditto"}).wing.receives


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fedavg": {"strategy": "fedsgd"}}, "fedavg.strategy"),
        ({"fedavg": {"strategie": "fedavg"}}, "write 'strategy'"),
        ({"fedavg": {"mu": 0.1}}, "fedavg.mu"),
        ({"fedavg": {"ditto_lambda": 1.0}}, "strategy ditto"),
        ({"fedavg": {"server": {"optimizer": "adam"}}}, "strategy fedopt"),
        ({"fedavg": {"strategy": "fedopt", "server": {"betas": [0.5, 0.5]}}}, "server.optimizer adam"),
        ({"fedavg": {"strategy": "fedopt", "server": {"optimizer": "adam", "momentum": 0.1}}}, "server.optimizer sgd"),
        ({"fedavg": {"strategy": "fedopt", "server": {"epsilon": 0.1}}}, "adam or adagrad"),
        ({"fedavg": {"strategy": "ditto", "candidates": "trained"}}, "fedavg.candidates"),
        ({"fedavg": {"strategy": "scaffold"}}, "plain SGD"),
        ({"fedavg": {"strategy": "scaffold", "sgd": {"learning_rate": 0.1, "momentum": 0.9}}}, "momentum 0.9"),
        ({"fedavg": {"strategy": "fedbn"}, "network": {"norm": "instance"}}, "whose layers have no tensors"),
        ({"fedavg": {"starts": ["personal", "scratch"]}}, "stages.fine_tuning.rounds"),
        ({"fedavg": {"starts": ["continued"]}, "stages": {"fine_tuning": {"rounds": 1}}}, "personal beside continued"),
        ({"fedavg": {"starts": ["scratch"]}, "stages": {"fine_tuning": {"rounds": 1}}}, "stages.training.rounds"),
        ({"stages": {"training": {"rounds": 0}}}, "fedavg.starts"),
        ({"stages": {"training": {"rounds": 5}}}, "at most 4"),
        ({"segmentation": {"fine_tuning": "federated"}}, "segmentation.fine_tuning"),
        ({"segmentation": {"encoder_rate_factor": 0.5}}, "encoder_rate_factor"),
        ({"data": {"alternatives": [{"role": "other", "labels": {1: "bar"}}]}}, "one label map at all sites"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(study: Study, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace(".", r"\.")):
        study(**change)


def test_a_network_that_another_system_builds_is_refused_with_that_systems_name(study: Study) -> None:
    network = {"name": "relocalization", "channels": None, "res_units": None}
    content = {"data": {"spatial_dims": 3, "crop": [16, 16, 2]}, "network": network}
    with pytest.raises(ConfigurationError, match="network"):
        study(**content)


def test_every_strategy_has_a_preset_of_its_name() -> None:
    from pathlib import Path
    from typing import get_args

    from fedmedseg.fedavg.config import Strategy

    folder = Path(__file__).parents[2] / "app_configs" / "presets" / "fedavg"
    found = {read_yaml(file).get("fedavg", {}).get("strategy") for file in folder.glob("*.yaml")} - {None}
    assert found == set(get_args(Strategy)) - {"fedavg"}
