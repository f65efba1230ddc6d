"""experiment.yaml: what is valid, what is refused, and what makes two studies the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedmedseg.core.config import Experiment, load_experiment, parse_experiment, system_module, systems
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.federation_settings import FederationSection, StageSection
from fedmedseg.core.jobs import find_job


def told(content: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_experiment(content)
    return str(caught.value)


def test_a_study_holds_its_own_systems_section(study: Callable[..., Experiment]) -> None:
    experiment = study(toy={"rate": 0.25})
    assert experiment.wing.rate == 0.25
    assert experiment.data.classes == 3
    assert experiment.stages["training"] == StageSection(rounds=2)


def test_a_file_is_read_like_its_content(experiment_file: Path, study: Callable[..., Experiment]) -> None:
    assert load_experiment(experiment_file).digest == load_experiment(str(experiment_file)).digest == study().digest


def test_the_digest_ignores_resume_and_nothing_else(study: Callable[..., Experiment]) -> None:
    digest = study().digest
    assert study(resume=True).digest == digest
    for change in ({"seed": 8}, {"study": "other"}, {"toy": {"rate": 0.1}}, {"federation": {"timeout": 5}}):
        assert study(**change).digest != digest


def test_the_digest_does_not_depend_on_the_order_of_keys(
    study: Callable[..., Experiment], settings: dict[str, Any]
) -> None:
    backwards = dict(reversed(settings.items()))
    assert parse_experiment(backwards).digest == study().digest


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"system": "fedat"}, ["system", "got 'fedat'", "write 'fedata'"]),
        ({"sede": 3}, ["sede", "write 'seed'"]),
        ({"seed": -1}, ["seed", "greater than or equal to 0"]),
        ({"study": "Heart Study"}, ["study"]),
        ({"study": "../up"}, ["study"]),
        ({"study": "a/b"}, ["study: got 'a/b'. Expected 1 to 63 lower-case letters", "letter or digit."]),
        ({"network": {"name": "unetr", "pretrained": "abc"}}, ["network.pretrained: got 'abc'.", "64 hexadecimal"]),
        ({"network": {"name": "unetr", "window": 7}}, ["network.window", "one of feature_size, heads, hidden_size, "]),
        ({"network": {"name": "unetr", "heads": 5}}, ["experiment.yaml: network.heads: got 5.", "Remedy: change"]),
        ({"toy": {"rate": float("inf")}}, ["toy.rate: got inf. Expected a finite number"]),
        ({"federation": {"quorum": float("nan")}}, ["federation.quorum: got nan.", "a finite number"]),
        ({"federation": {"timeout": 10**20}}, ["federation.timeout", "less than or equal to 1000000000"]),
        ({"study": ""}, ["study"]),
        ({"toy": {"rat": 1}}, ["toy.rat", "write 'rate'"]),
        ({"stages": {"training": {}}}, ["stages", "exactly testing, training, tuning", "testing, tuning"]),
        ({"stages": {"training": {}, "tuning": {}, "testing": {}, "more": {}}}, ["add or remove more"]),
        ({"stages": {"training": {"rounds": -1}, "tuning": {}, "testing": {}}}, ["stages.training.rounds"]),
        ({"federation": {"quorum": "most"}}, ["federation.quorum", "'most'"]),
        ({"federation": {"quorum": 0}}, ["federation.quorum"]),
        ({"federation": {"quorum": 1.0}}, ["federation.quorum"]),
        ({"federation": {"quorum": True}}, ["federation.quorum"]),
        ({"federation": {"timeout": 0}}, ["federation.timeout"]),
        ({"compute": {"device": "tpu"}}, ["compute.device"]),
        ({"network": {"name": "untr"}}, ["network.name", "write 'unetr'"]),
        ({"network": {"name": "unet", "strides": [2]}}, ["network.strides", "4 numbers", "5 channels"]),
        (
            {"network": {"name": "unetr", "hidden_size": 10, "heads": 3}},
            ["network.heads: got 3.", "a divisor of network.hidden_size (10)"],
        ),
        ({"network": {"name": "swin_unetr", "feature_size": 13}}, ["network.feature_size", "multiple of 12"]),
        ({"network": {"name": "swin_unetr", "depths": [2, 2, 2]}}, ["network.depths"]),
        ({"network": {"name": "basic_unet", "features": [8, 8]}}, ["network.features"]),
        ({"network": {"name": "basic_unet", "norm": "layer"}}, ["network.norm", "batch"]),
    ],
)
def test_a_wrong_study_is_refused_by_name(
    toy: None, settings: dict[str, Any], change: dict[str, Any], parts: list[str]
) -> None:
    message = told({**settings, **change})
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"crop": [32, 32, 32]}, "data.crop: got [32, 32, 32]. Expected 2 numbers, because data.spatial_dims is 2"),
        ({"crop": [32, 32], "spatial_dims": 3}, "a 2D preset laid over a 3D one, or the reverse, needs data.spatial"),
        ({"crop": [32, 33]}, "data.crop: got [32, 33]. Expected edges that divide by 16"),
        ({"crop": [32, 33]}, "Remedy: use 32, 48."),
        ({"crop": [8192000, 8192000]}, "data.crop: got [8192000, 8192000]. Expected at most 134217728 voxels"),
        ({"crop": [10**20, 32]}, "data.crop.0: got 100000000000000000000. Expected less than or equal to 1000000000"),
        ({"labelled_fraction": float("nan")}, "data.labelled_fraction: got nan. Expected a finite number"),
        ({"crop": [0, 32]}, "data.crop.0"),
        ({"labels": {1: "left", 3: "right"}}, "without a gap"),
        ({"labels": {0: "background", 1: "left"}}, "data.labels"),
        ({"labels": {1: "left", 2: "left"}}, "each structure's name once"),
        ({"window": [100, 100]}, "low < high"),
        ({"role": "Cardiac CT"}, "data.role"),
        ({"modality": "pet"}, "data.modality"),
        ({"labelled_fraction": 0}, "data.labelled_fraction"),
        ({"labelled_fraction": 1.01}, "data.labelled_fraction"),
        ({"labelled_patients": 0}, "data.labelled_patients"),
        (
            {"labelled_patients": 2, "labelled_fraction": 0.5},
            "data.labelled_patients: got 2, and labelled_fraction 0.5",
        ),
        ({"min_foreground": 1.0}, "data.min_foreground"),
        ({"phantom": {"family": "brain"}}, "data.phantom.family"),
    ],
)
def test_wrong_data_settings_are_refused(
    toy: None, settings: dict[str, Any], change: dict[str, Any], part: str
) -> None:
    settings["data"].update(change)
    assert part in told(settings)


@pytest.mark.parametrize("content", [None, [], {}, {"system": None}, {"system": ["fedata"]}, "fedata"])
def test_without_a_system_there_is_no_study(content: Any) -> None:
    message = told(content)
    assert message.startswith("experiment.yaml: system: Expected one of")
    assert "fedata" in message


def test_labels_are_kept_in_order_whatever_the_order_in_the_file(
    study: Callable[..., Experiment], settings: dict[str, Any]
) -> None:
    settings["data"]["labels"] = {"2": "right", "1": "left"}
    assert list(study(**settings).data.labels.items()) == [(1, "left"), (2, "right")]


def test_a_study_cannot_be_changed_after_reading(study: Callable[..., Experiment]) -> None:
    with pytest.raises(ValidationError):
        study().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("quorum", "sites", "needed"),
    [
        ("all", 5, 5),
        ("all", 0, 0),
        (2, 5, 2),
        (6, 5, 6),
        (0.5, 5, 3),
        (0.5, 4, 2),
        (0.999, 5, 5),
        (0.01, 5, 1),
        (0.5, 0, 1),
        # 0.1 * 10 and 0.7 * 10 have no exact float, and still are 1 and 7
        (0.1, 10, 1),
        (0.7, 10, 7),
        (0.55, 100, 55),
        (0.28, 100, 28),
    ],
)
def test_a_quorum_is_all_a_count_or_a_fraction_rounded_up(quorum: Any, sites: int, needed: int) -> None:
    assert FederationSection(quorum=quorum).needed(sites) == needed


def test_the_installed_systems_all_have_a_configuration_and_a_plan() -> None:
    assert "fedata" in systems()
    for system in systems():
        assert system_module(system, "config").Section.model_fields
        assert callable(system_module(system, "plan").stages)


def test_a_study_is_read_anew_and_validated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's executor and filters ask for it in every round."""
    file = tmp_path / "experiment.yaml"
    text = (find_job("fedata") / "app" / "config" / "experiment.yaml").read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    first = load_experiment(file)
    assert load_experiment(file) is first
    file.write_text(text + "\nseed: 77\n" if "\nseed:" not in text else re.sub(r"\nseed: *\d+", "\nseed: 77", text))
    assert load_experiment(file).seed == 77
    file.unlink()
    with pytest.raises(ConfigurationError, match="No such file"):
        load_experiment(file)
