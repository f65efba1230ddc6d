"""Settings that cannot work are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedmedseg.cardiac_ct.gate import Limits
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError

Study = Callable[..., Experiment]
OFF = {"rounds": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": {"name": "unet"}}, r"network\.name: got unet.*swin_unetr"),
        ({"network": {"pretrained": "0" * 64}}, r"network\.pretrained.*cardiac_ct\.start"),
        ({"data": {"intensity": "foreground"}}, "data: got modality ct.*heart_crop"),
        ({"data": {"labels": {1: "coronaries"}}}, r"data\.labels.*calcification"),
        ({"data": {"labels": {1: "calcification"}}}, r"data\.labels.*coronaries"),
        ({"segmentation": {"augment": True}}, r"segmentation\.augment.*wrong side"),
        ({"segmentation": {"validate_every": 7}}, r"segmentation\.validate_every"),
        ({"stages": {"pseudo_labelling": {"rounds": 2}}}, r"pseudo_labelling\.rounds.*done once"),
        ({"stages": {"pseudo_labelling": OFF}}, r"pseudo_labelling\.rounds.*pseudo-labels"),
        ({"stages": {"distillation": OFF}}, r"pseudo_labelling\.rounds"),
        ({"cardiac_ct": {"tasks": ["hps", "calc"]}}, r"teacher_ms\.rounds.*not among cardiac_ct\.tasks"),
        ({"cardiac_ct": {"head_steps": 0}}, r"head_steps.*both 0, or both above"),
        ({"cardiac_ct": {"teacher": {"steps": 1}}, "stages": {"teacher_hps": {"rounds": 2}}}, r"teacher_hps\.rounds"),
        ({"cardiac_ct": {"distillation": {"temperature": 3.0}}}, r"temperature.*targets soft"),
        ({"cardiac_ct": {"sigma": 3.0}}, r"cardiac_ct\.sigma.*heatmaps"),
        ({"cardiac_ct": {"landmarks": "heatmaps", "distillation": {"targets": "soft"}}}, r"targets.*heat maps are no"),
        ({"cardiac_ct": {"gate": {"septum": [5.0, 5.0]}}}, r"gate\.septum.*least < most"),
        ({"cardiac_ct": {"teacher": {"strides": [1, 2]}}}, r"teacher\.strides"),
        ({"cardiac_ct": {"teacher": {"supervised": 2}}}, r"teacher\.supervised.*at most 1"),
        ({"cardiac_ct": {"teacher": {"size": [32, 30, 24]}}}, r"teacher\.size\[1\].*use 32"),
        ({"cardiac_ct": {"teacher": {"size": [4, 4, 4]}}}, r"teacher\.size.*instance norm"),
        ({"cardiac_ct": {"transfer": {"backbones": []}}}, r"transfer\.backbones"),
        ({"cardiac_ct": {"transfer": {"task": "calc"}}}, r"transfer\.task: got calc, which is among .*--start"),
        (
            {"cardiac_ct": {"share": "nothing"}, "stages": {"distillation": {"rounds": 2}}},
            r"distillation\.rounds.*nothing",
        ),
        ({"stages": {"teacher_hps": OFF}}, r"transfer\.rounds.*teacher_hps"),
        ({"federation": {"encryption": "ckks"}}, r"federation\.encryption.*which heads a site trained.*head_mean all"),
        (
            {
                "cardiac_ct": {"share": "nothing", "head_mean": "all", "distillation": {"pseudo_labels": False}},
                "stages": {"pseudo_labelling": OFF, "distillation": {"rounds": 1}},
            },
            r"cardiac_ct\.head_mean: got all.*share federated",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(study: Study, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        study(**changes)


def test_a_stage_alone_needs_an_earlier_runs_tensors(study: Study) -> None:
    alone = {
        "stages": {
            **{f"teacher_{task}": OFF for task in ("hps", "ms", "calc")},
            "pseudo_labelling": OFF,
            "distillation": OFF,
            "transfer": OFF,
        },
        "cardiac_ct": {"gate": None, "transfer": None},
    }
    with pytest.raises(ConfigurationError, match=r"head_tuning\.rounds.*cardiac_ct\.start"):
        study(**alone)
    alone["cardiac_ct"]["start"] = "0" * 64
    assert study(**alone).wing.start == "0" * 64
    alone["stages"] |= {"head_tuning": OFF, "transfer": {"rounds": 1}}
    alone["cardiac_ct"] |= {"head_steps": 0, "transfer": {"task": "calc"}}
    assert study(**alone).wing.transfer.task in study(**alone).wing.tasks, "a layer that is trained alone may be"


def test_one_changed_setting_of_the_cnns_optimiser_leaves_the_others_as_published(study: Study) -> None:
    """torch's own AdamW; what the shipped study changes is taken out first."""
    shipped = dict.fromkeys(("weight_decay", "betas", "warmup_fraction", "clip_norm"))
    found = study(cardiac_ct={"teacher": {"optimizer": {**shipped, "learning_rate": 1.0e-3}}}).wing.teacher.optimizer
    assert found.model_dump() == {
        "learning_rate": 1.0e-3,
        "weight_decay": 0.01,
        "betas": (0.9, 0.999),
        "warmup_fraction": 0.0,
        "clip_norm": 1.0e9,
    }


def test_tasks_are_kept_in_their_order(study: Study) -> None:
    assert study(cardiac_ct={"tasks": ["calc", "hps", "ms"]}).wing.tasks == ("hps", "ms", "calc")


def test_a_limit_of_the_gate_is_left_out_by_name(study: Study) -> None:
    limits = study(cardiac_ct={"gate": {"calcium": "any", "septum": [2.0, 9.0]}}).wing.gate.limits
    assert (limits.calcium, limits.septum) == (None, (2.0, 9.0))
    assert limits.hinge_points is not None
    with pytest.raises(ConfigurationError, match=r"gate\.calcium.*least < most, or any"):
        study(cardiac_ct={"gate": {"calcium": [5.0, 1.0]}})


def test_every_limit_of_the_gate_is_the_studys(study: Study) -> None:
    """None of them the default."""
    gate = {
        "hinge_points": (9.0, 40.0),
        "ostia": (3.0, 30.0),
        "septum": (2.0, 9.0),
        "calcium": (1.0, 500.0),
        "least_confidence": 0.25,
    }
    assert study(cardiac_ct={"gate": gate}).wing.gate.limits == Limits(**gate)  # type: ignore[arg-type]


def test_a_study_is_encrypted_where_no_reply_has_to_be_read(study: Study) -> None:
    encrypted = {"encryption": "ckks"}
    assert study(federation=encrypted, cardiac_ct={"head_mean": "all"}).federation.encryption == "ckks"
    cnns_alone = dict.fromkeys(("pseudo_labelling", "distillation", "head_tuning", "transfer"), OFF)
    wing = {"gate": None, "head_steps": 0, "transfer": None}
    assert study(federation=encrypted, stages=cnns_alone, cardiac_ct=wing).wing.head_mean == "trained"
