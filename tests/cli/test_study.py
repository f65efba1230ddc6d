"""What `simulate` and `job` lay over a job's settings, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmedseg.cli.study import _blaming, read_study
from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import system_module
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import CONFIG, find_job, write_job
from fedmedseg.core.start_file import START_FILE, tensors_of


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
    with pytest.raises(ConfigurationError, match=r"list.yaml: got a list. Expected a mapping"):
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


ALONE = [f"stages.teacher_{task}.rounds=0" for task in ("hps", "ms", "calc")] + [
    *(f"stages.{stage}.rounds=0" for stage in ("pseudo_labelling", "distillation", "head_tuning")),
    "cardiac_ct.gate=null",
    "cardiac_ct.head_steps=0",
    "cardiac_ct.transfer.backbones=[student]",
]


def test_an_earlier_runs_model_travels_in_the_job_and_is_named_there(tmp_path: Path) -> None:
    """The file beside experiment.yaml is the one that it names, and one that lacks a tensor is refused."""
    named = read_study("cardiac_ct", None, [*ALONE, f"cardiac_ct.start='{'0' * 64}'"], None).experiment
    tensors = system_module("cardiac_ct", "plan").initial_shared(named)
    file = tmp_path / "shared.safetensors"
    checkpoint.save(file, {"tensors": tensors})
    study = read_study("cardiac_ct", None, ALONE, None, file)
    assert study.experiment.wing.start == content_sha256(tensors)
    job = write_job(study.folder, study.settings, tmp_path / "job", finish=study.place_files)
    assert content_sha256(tensors_of(job / CONFIG / START_FILE)) == study.experiment.wing.start
    # a copy for a study that starts from nothing carries no file
    plain = read_study("cardiac_ct", None, None, None)
    assert not (
        write_job(job, plain.settings, tmp_path / "plain", finish=plain.place_files) / CONFIG / START_FILE
    ).exists()
    checkpoint.save(file, {"tensors": {name: tensors[name] for name in list(tensors)[1:]}})
    fewer = read_study("cardiac_ct", None, ALONE, None, file)
    with pytest.raises(ConfigurationError, match=r"without 1 tensor.*--start FILE"):
        write_job(fewer.folder, fewer.settings, tmp_path / "fewer", finish=fewer.place_files)
    with pytest.raises(ConfigurationError, match="unknown key 'start'"):
        read_study("segviz", None, None, None, file)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["segmentation.batch=x"], "--set segmentation.batch: got 'x'. Expected a whole number"),
        (["segmentation.batchs=3"], "--set segmentation.batchs: got an unknown key 'batchs'.*write 'batch'"),
        (
            ["compute.precision=fp8"],
            "--set compute.precision: got 'fp8'.*'fp32', 'bf16' or 'auto'.*Remedy: write one of these",
        ),
        (["network.name=unnet"], "--set network.name: got an unknown name 'unnet'.*write 'unet'"),
        (["segmentation={batch: 0}"], "--set segmentation: segmentation.batch: got 0"),
        (["seed=3", "stages.training.rounds=2"], "--set stages.training.rounds: stages: got .*Expected exactly"),
    ],
)
def test_a_wrong_change_is_told_as_one_of_its_option(changes: list[str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{told}") as caught:
        read_study("fedata", None, changes, None)
    assert "experiment.yaml" not in str(caught.value)


def test_what_is_wrong_without_any_change_is_told_as_the_files_own(tmp_path: Path) -> None:
    wrong = preset(tmp_path, "wrong", "segmentation: {batch: 0}")
    with pytest.raises(ConfigurationError, match=r"^experiment\.yaml: segmentation\.batch: got 0"):
        read_study("fedata", [wrong], ["seed=3"], None)


def test_a_check_that_names_another_setting_is_told_with_all_that_was_changed() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"^--set seed=3, --set a\.b=1: fedata\.mask_unit: got 12\.$"),
        _blaming(("seed=3", "a.b=1"), find_job("fedata"), []),
    ):
        raise ConfigurationError("fedata.mask_unit", got=12)
