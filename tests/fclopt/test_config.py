"""Settings of FCLOpt: what is refused, and that the refusal says how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedmedseg.core.config import parse_experiment
from fedmedseg.core.errors import ConfigurationError


def refused(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_experiment(content)


def test_defaults_are_the_specifications(settings: Callable[..., dict[str, Any]]) -> None:
    content = settings()
    content["fclopt"] = {"local_steps": 80}
    section = parse_experiment(content).wing
    assert (section.mode, section.momentum, section.structural_weight) == ("ptnu_dp", 0.99, 0.5)
    assert (section.hidden, section.projection, section.head_norm) == (768, 128, True)
    assert (section.volumes_per_step, section.parts) == (8, 4)
    assert (section.distance.warm_up, section.distance.every, section.distance.ratio) == (3, 10, "last")
    assert (section.optimizer.learning_rate, section.optimizer.momentum, section.optimizer.weight_decay) == (
        0.032, 0.9, 5e-4,
    )  # fmt: skip
    assert section.collapse.alarm == 0.3


@pytest.mark.parametrize(
    ("fclopt", "words"),
    [
        ({"mode": "ptnu_db"}, "fclopt.mode"),
        ({"momentum": 1.0}, "fclopt.momentum"),
        ({"volumes_per_step": 1}, "fclopt.volumes_per_step"),
        ({"mode": "ptnu", "distance": {"every": 5}}, "fclopt.distance.every.*mode ptnu_dp"),
        ({"mode": "ptnu", "distance": {"warm_up": 5}}, "fclopt.distance.warm_up"),
        ({"mode": "ptnu", "distance": {"ratio": "ema"}}, "fclopt.distance.ratio"),
        ({"distance": {"ema": 0.9}}, "fclopt.distance.ema.*ratio ema"),
        ({"mode": "both", "distance": {"grain": "global"}}, "fclopt.distance: got.*mode ptnu or ptnu_dp"),
        ({"mode": "closed_form", "distance": {"every": 5}}, "fclopt.distance"),
        ({"fedema": {"tau": 0.5}}, "fclopt.fedema.*client_mix fedema"),
        ({"client_mix": "fedema"}, "client_mix.*ptnu_dp.*keep_local"),
        ({"starts": ["shared", "shared"]}, "fclopt.starts"),
        ({"starts": ["scratch"]}, r"stages.pretraining.rounds.*0 where fclopt.starts is \[scratch\]"),
        ({"distance": {"warm_up": 0}}, "fclopt.distance.warm_up"),
        ({"optimiser": {}}, "unknown key 'optimiser'.*write 'optimizer'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    fclopt: dict[str, Any], words: str, settings: Callable[..., dict[str, Any]]
) -> None:
    refused(settings(**fclopt), words)


@pytest.mark.parametrize("mode", ["ptnu_dp", "ptnu", "closed_form", "naive"])
def test_rounding_on_the_way_down_is_refused_where_targets_are_predicted(
    mode: str, settings: Callable[..., dict[str, Any]]
) -> None:
    """Server and sites would predict from other bits, and every site would be sent its target whole in every round."""
    content = settings(mode=mode) | {"federation": {"transport_down": "int8"}}
    refused(content, f"federation.transport_down: got int8 with fclopt.mode {mode}.*keep_local")
    assert parse_experiment(settings(mode=mode) | {"federation": {"transport": "int8"}}).wing.mode == mode


@pytest.mark.parametrize("mode", ["keep_local", "online", "both"])
def test_rounding_on_the_way_down_goes_with_targets_that_nobody_predicts(
    mode: str, settings: Callable[..., dict[str, Any]]
) -> None:
    content = settings(mode=mode) | {"federation": {"transport_down": "int8"}}
    assert parse_experiment(content).federation.transport_down == "int8"


@pytest.mark.parametrize("mode", ["keep_local", "online", "both"])
def test_fedemas_mixing_goes_with_targets_that_nobody_predicts(
    mode: str, settings: Callable[..., dict[str, Any]]
) -> None:
    assert parse_experiment(settings(mode=mode, client_mix="fedema")).wing.client_mix == "fedema"


def test_another_network_is_refused(settings: Callable[..., dict[str, Any]]) -> None:
    content = settings()
    content["network"] = {"name": "unet", "channels": [4, 8], "norm": "batch"}
    refused(content, "network.name: got unet. Expected basic_unet")


def test_volumes_are_taken_as_slices(settings: Callable[..., dict[str, Any]]) -> None:
    content = settings()
    content["data"] |= {"spatial_dims": 3, "crop": [32, 32, 16]}
    refused(content, "data.spatial_dims")


def test_without_pretraining_nothing_pretrained_is_tested(settings: Callable[..., dict[str, Any]]) -> None:
    content = settings()
    content["stages"]["pretraining"]["rounds"] = 0
    refused(content, r"fclopt.starts.*\[scratch\]")
    content["fclopt"]["starts"] = ["scratch"]
    assert parse_experiment(content).stages["pretraining"].rounds == 0


@pytest.mark.parametrize("mode", ["both", "ptnu", "ptnu_dp", "closed_form", "naive"])
def test_encryption_is_refused_where_the_server_must_read(mode: str, settings: Callable[..., dict[str, Any]]) -> None:
    refused(
        settings(mode=mode) | {"federation": {"encryption": "ckks"}},
        f"federation.encryption: got ckks with fclopt.mode {mode}",
    )


@pytest.mark.parametrize("mode", ["keep_local", "online"])
def test_encryption_goes_with_a_mean_of_online_networks(mode: str, settings: Callable[..., dict[str, Any]]) -> None:
    assert (
        parse_experiment(settings(mode=mode) | {"federation": {"encryption": "ckks"}}).federation.encryption == "ckks"
    )
