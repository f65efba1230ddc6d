"""What `simulate` and `job` lay over a job's settings, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmedseg.cli.study import read_study
from fedmedseg.core.errors import ConfigurationError


def preset(folder: Path, name: str, text: str) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return str(file)


def test_later_presets_lie_over_earlier_ones_and_single_settings_over_both(tmp_path: Path) -> None:
    first = preset(tmp_path, "first", "seed: 11\nfedata: {local_steps: 5, kappa: 0.5}\n")
    second = preset(tmp_path, "second", "seed: 12\nfedata: {local_steps: 6}\n")
    one = read_study("fedata", [first, second], None, None).experiment
    other = read_study("fedata", [second, first], None, None).experiment
    changed = read_study("fedata", [first, second], ["seed=13"], None).experiment
    assert (one.seed, one.wing.local_steps, one.wing.kappa) == (12, 6, 0.5)
    assert (other.seed, other.wing.local_steps, other.wing.kappa) == (11, 5, 0.5)
    assert (changed.seed, changed.wing.local_steps) == (13, 6)


def test_a_baseline_lies_over_a_data_set(tmp_path: Path) -> None:
    experiment = read_study("fedata", ["sunnybrook", "fed_mae"], None, None).experiment
    assert experiment.data.crop == (96, 96)
    assert (experiment.wing.pretext, experiment.wing.server_aggregation) == ("mae", "fedavg")


def test_a_study_of_several_presets_is_called_after_all_of_them_whatever_their_order() -> None:
    both = [read_study("fedata", names, None, None) for names in (["sunnybrook", "fed_mae"], ["fed_mae", "sunnybrook"])]
    assert [one.experiment.study for one in both] == ["fedata-sunnybrook-fed_mae", "fedata-fed_mae-sunnybrook"]
    assert read_study("fedata", ["sunnybrook"], None, None).experiment.study == "fedata-sunnybrook"
    assert read_study("fedata", ["sunnybrook", "fed_mae"], ["study=mine"], None).experiment.study == "mine"


def test_no_layers_leave_the_job_as_it_is() -> None:
    study = read_study("fedata", None, None, None)
    assert study.layers == ()
    assert study.experiment.network.pretrained is None


def test_an_unknown_preset_and_one_that_is_no_mapping_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="write 'sunnybrook'"):
        read_study("fedata", ["fed_mae", "sunnybrok"], None, None)
    with pytest.raises(ConfigurationError, match=r"list.yaml: got list. Expected a mapping"):
        read_study("fedata", [preset(tmp_path, "list", "[1, 2]")], None, None)


BASELINES = (
    "fed_mae",
    "fed_simmim",
    "fedavg_scratch",
    "fedema",
    "federated_fine_tuning",
    "local_only",
    "no_pretraining",
)


@pytest.mark.parametrize("data_set", [None, "sunnybrook", "hippocampus", "paper"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_is_valid_over_every_data_set(data_set: str | None, baseline: str) -> None:
    over = read_study("fedata", [name for name in (data_set, baseline) if name], None, None).experiment
    base = read_study("fedata", [data_set] if data_set else None, None, None).experiment
    assert over.data == base.data
    assert over.network == base.network
    assert over.segmentation.steps == base.segmentation.steps
    assert over.digest != base.digest


def test_the_baselines_are_what_their_names_say() -> None:
    wings, rounds, tuning = {}, {}, {}
    for name in BASELINES:
        experiment = read_study("fedata", [name], None, None).experiment
        wings[name], tuning[name] = experiment.wing, experiment.segmentation.fine_tuning
        rounds[name] = experiment.stages["pretraining"].rounds
    for name, pretext in (("fed_mae", "mae"), ("fed_simmim", "simmim")):
        wing = wings[name]
        assert (wing.pretext, wing.server_aggregation, wing.client_mix) == (pretext, "fedavg", "replace")
    assert (wings["fedema"].client_mix, wings["fedema"].server_aggregation) == ("fedema", "fedavg")
    assert (wings["local_only"].server_aggregation, wings["local_only"].starts) == ("none", ("personal",))
    for name in ("no_pretraining", "fedavg_scratch"):
        assert (rounds[name], wings[name].starts) == (0, ("scratch",))
    assert (tuning["fedavg_scratch"], tuning["no_pretraining"]) == ("federated", "local")
    assert (tuning["federated_fine_tuning"], wings["federated_fine_tuning"].starts) == ("federated", ("shared",))


def test_the_full_size_preset_has_the_specifications_figures() -> None:
    experiment = read_study("fedata", ["paper"], None, None).experiment
    network, wing, tuning = experiment.network, experiment.wing, experiment.segmentation
    assert (network.name, network.feature_size, network.window) == ("swin_unetr", 48, 7)
    assert (network.depths, network.heads) == ((2, 2, 2, 2), (3, 6, 12, 24))
    assert (experiment.data.crop, experiment.data.spacing) == ((96, 96, 96), (1.0, 1.0, 1.0))
    assert (wing.optimizer.learning_rate, wing.optimizer.weight_decay) == (4e-4, 0.05)
    assert (wing.optimizer.betas, wing.optimizer.warmup_fraction) == ((0.9, 0.95), 0.05)
    assert (wing.mask_ratio, wing.mask_unit, wing.smooth_l1_beta) == (0.7, 16, 2.0)
    assert (wing.ema.start, wing.ema.end, wing.kappa, wing.server_step) == (0.996, 1.0, 1.0, 1.0)
    assert (wing.client_mix, wing.server_aggregation) == ("ala_attn", "layer_att")
    assert (wing.volumes_per_step, wing.crops_per_volume) == (2, 2)
    assert 50 <= wing.local_steps <= 100
    assert experiment.stages["pretraining"].rounds == 200
    assert (tuning.optimizer.learning_rate, tuning.optimizer.weight_decay) == (1e-4, 1e-5)
    assert tuning.optimizer.warmup_fraction == pytest.approx(50 / 300, abs=1e-6)
    assert (tuning.batch, tuning.overlap) == (1, 0.5)
