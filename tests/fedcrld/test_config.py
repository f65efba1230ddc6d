"""The section: its defaults, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.errors import ConfigurationError

Study = Callable[..., Experiment]
Settings = Callable[..., dict[str, Any]]


def test_defaults_are_those_of_the_specification(study: Study) -> None:
    section = study().wing
    assert (section.share, section.weights) == ("encoder", "equal")
    assert (section.loss.form, section.loss.contrast, section.loss.contrast_weight) == ("corrected", "difference", 1.0)
    assert (section.loss.distillation_weight, section.loss.history_weight) == (0.2, 1.0)
    assert (section.bank.momentum, section.bank.learning_rate) == (0.5, None)
    assert (section.optimizer.learning_rate, section.optimizer.betas) == (3e-4, (0.9, 0.999))
    assert section.optimizer.weight_decay == 0.0


def changed(content: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    for path, value in change.items():
        inner = content
        *way, last = path.split(".")
        for key in way:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"name": "unetr"}, "data.crop": [16, 16, 16]}, "network.name"),
        ({"network.width": 12}, "network.width"),
        ({"data.spatial_dims": 2, "data.crop": [16, 16]}, "data.spatial_dims"),
        ({"data.crop": [16, 12, 2]}, "edges that divide by 8"),
        ({"fedcrld.local_epochs": 1}, "both local_steps and local_epochs"),
        ({"fedcrld.local_steps": None}, "neither local_steps nor local_epochs"),
        ({"fedcrld.starts": []}, "fedcrld.starts"),
        ({"fedcrld.starts": ["personal", "personal"]}, "each start once"),
        ({"fedcrld.starts": ["scratch"]}, "no start would use what comes of it"),
        ({"fedcrld.starts": ["continued"], "stages.fine_tuning.rounds": 1}, "personal beside continued"),
        ({"stages.relocalization.rounds": 0}, "fedcrld.starts"),
        ({"fedcrld.starts": ["personal", "scratch"]}, "stages.fine_tuning.rounds"),
        ({"stages.fine_tuning.rounds": 1}, "no model of fedcrld.starts is fine-tuned"),
        ({"segmentation.fine_tuning": "federated"}, "segmentation.fine_tuning"),
        ({"segmentation.batch": 2, "data.whole_depth": True}, "1 with data.whole_depth"),
        ({"segmentation.encoder_rate_factor": 0.5}, "segmentation.encoder_rate_factor"),
        ({"fedcrld.loss.temperature": 0.1}, "contrast moon"),
        ({"fedcrld.loss": {"contrast": "off", "contrast_weight": 2.0}}, "fedcrld.loss.contrast_weight"),
        (
            {"fedcrld.loss": {"distillation_weight": 0.0, "history_weight": 0.0}, "fedcrld.bank.momentum": 0.9},
            "fedcrld.bank",
        ),
        ({"fedcrld.share": "nothing", "fedcrld.weights": "cases"}, "fedcrld.weights"),
        ({"fedcrld.bank.momentum": 1.5}, "fedcrld.bank.momentum"),
        ({"fedcrld.loss.contrast": "infonce"}, "fedcrld.loss.contrast"),
    ],
)
def test_what_cannot_work_is_refused_by_name(settings: Settings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_experiment(changed(settings(), change))
    assert message in str(caught.value)


def test_other_systems_refuse_this_network(settings: Settings) -> None:
    content = settings()
    content["system"] = "fedata"
    del content["fedcrld"]
    content["fedata"] = {"local_steps": 1, "optimizer": {"learning_rate": 1e-3}}
    content["stages"] = {"pretraining": {}, "fine_tuning": {}, "evaluation": {}}
    with pytest.raises(ConfigurationError) as caught:
        parse_experiment(content)
    assert caught.value.field == "network.name"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"fedcrld.loss": {"contrast": "moon", "temperature": 0.1}, "fedcrld.bank.momentum": 0.99},
        {"fedcrld.starts": ["personal", "continued", "scratch"], "stages.fine_tuning.rounds": 1},
        {"fedcrld.local_steps": None, "fedcrld.local_epochs": 5, "data.whole_depth": True},
    ],
)
def test_a_study_written_out_in_full_is_read_again(settings: Settings, change: dict[str, Any]) -> None:
    experiment = parse_experiment(changed(settings(), change))
    assert parse_experiment(experiment.model_dump(mode="json")).digest == experiment.digest
