"""Settings that fit together, and clear words where they do not."""

from typing import Any

import pytest

from fedmedseg.core.config import parse_experiment
from fedmedseg.core.errors import ConfigurationError


def test_defaults_are_those_of_the_specification(study) -> None:
    section = parse_experiment(
        {
            **study().model_dump(mode="json", exclude={"fcl"}, exclude_none=True),
            "fcl": {"local_epochs": 1},
        }
    ).wing
    assert (section.temperature, section.momentum, section.parts, section.volumes_per_step) == (0.1, 0.99, 4, 8)
    assert (section.denominator, section.partition, section.key_sync, section.warmup_rounds) == (
        "paper", "even", "reset", 5,
    )  # fmt: skip
    assert (section.bank.size, section.bank.share, section.bank.samples) == (2048, 0.8, None)
    assert (section.projector.out, section.projector.norm, section.collapse.alarm) == (128, False, 0.3)
    optimizer = section.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 1e-5)
    assert (section.exchange, section.transport, section.noise.sigma) == (True, "fp32", 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": {"name": "unet", "features": None, "norm": "batch"}}, "network.*"),
        ({"local_steps": 2, "local_epochs": 1}, "fcl.local_steps: got both"),
        ({"local_steps": None}, "fcl.local_steps: got neither"),
        ({"volumes_per_step": 1, "parts": 1}, "fcl.volumes_per_step.*two slices"),
        ({"aggregation": "none"}, "fcl.exchange: got true with fcl.aggregation none.*spaces of their own"),
        ({"aggregation": "none", "exchange": False}, "fcl.starts.*no encoder is shared"),
        ({"starts": ["scratch"]}, "stages.pretraining.rounds.*no start would use"),
        ({"starts": ["shared", "shared"]}, "each start once"),
        ({"rounds": 0}, "fcl.starts.*where stages.pretraining.rounds is 0"),
        ({"structural": False, "warmup_rounds": 2}, "fcl.warmup_rounds.*structural true"),
        ({"exchange": False, "transport": "fp16"}, "fcl.transport.*exchange true"),
        ({"exchange": False, "most_received": 9}, "fcl.most_received.*exchange true"),
        ({"most_received": 0}, "fcl.most_received"),
        ({"exchange": False, "noise": {"sigma": 0.1}}, "fcl.noise.*exchange true"),
        ({"exchange": False, "upload": "recompute"}, "fcl.upload.*exchange true"),
        ({"exchange": False, "correspondence": {"factor": 3}}, "fcl.correspondence.*exchange true"),
        ({"noise": {"renormalise": False}}, "fcl.noise.renormalise.*sigma above 0"),
        ({"temprature": 0.1}, "write 'temperature'"),
        ({"sections": {"federation": {"encryption": "ckks"}}}, "federation.encryption.*exchange features"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_field_and_the_remedy(settings, changes: dict[str, Any], words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_experiment(settings(**changes))


def test_volumes_are_for_slices(settings) -> None:
    content = settings()
    content["data"] |= {"spatial_dims": 3, "crop": [32, 32, 32]}
    with pytest.raises(ConfigurationError, match=r"data.spatial_dims.*slices"):
        parse_experiment(content)


def test_another_network_is_refused(settings) -> None:
    content = settings()
    content["network"] = {"name": "unetr"}
    with pytest.raises(ConfigurationError, match=r"network.name.*basic_unet"):
        parse_experiment(content)


def test_the_baselines_are_valid_and_encryption_suits_those_without_an_exchange(study) -> None:
    study(exchange=False, positives="view", structural=False, warmup_rounds=5)
    study(exchange=False, aggregation="none", starts=["personal", "scratch"])
    study(exchange=False, sections={"federation": {"encryption": "ckks"}})
    study(rounds=0, starts=["scratch"])
