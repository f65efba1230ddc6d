"""Settings of SegViz that do not go together are refused with the field and the way to mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError

CT = {"modality": "ct"}
SWIN = {"name": "swin_unetr", "feature_size": 12}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"network": SWIN, "data": {"crop": [64, 64]}}, ["network.name", "unet", "last block"]),
        ({"segviz": {"share": "fedbm"}}, ["segviz.share", "fedbn"]),
        ({"segviz": {"exclusion": 0.5}}, ["segviz.exclusion", "mode one_model"]),
        ({"segviz": {"distillation": {"last": 2.0}}}, ["segviz.distillation", "mode one_model"]),
        ({"segmentation": {"fine_tuning": "federated"}}, ["segmentation.fine_tuning"]),
        ({"segmentation": {"encoder_rate_share": 0.5}}, ["segmentation.encoder_rate_share"]),
        ({"segviz": {"windows": {"disc": [0, 1]}}}, ["segviz.windows", "CT"]),
        ({"data": CT, "segviz": {"windows": {"disc": [0, 1]}}}, ["segviz.windows.bar", "no window"]),
        (
            {"data": CT, "segviz": {"windows": {"disk": [0, 1], "square": [0, 1], "bar": [0, 1], "disc": [0, 1]}}},
            ["segviz.windows.disk", "write 'disc'"],
        ),
        ({"data": CT, "segviz": {"windows": {"disc": [1, 0]}}}, ["segviz.windows", "low < high"]),
        ({"stages": {"training": {"rounds": 0}}}, ["stages.training.rounds", "1 to 4"]),
        ({"stages": {"training": {"rounds": 5}}}, ["stages.training.rounds", "1 to 4"]),
        ({"stages": {"evaluation": {"rounds": 2}}}, ["stages.evaluation.rounds", "read once"]),
        ({"stages": {"head_tuning": {"rounds": 2}}, "segviz": {"head_steps": 1}}, ["stages.head_tuning.rounds"]),
        ({"stages": {"head_tuning": {"rounds": 1}}}, ["segviz.head_steps", "both 0"]),
        ({"segviz": {"head_steps": 3}}, ["segviz.head_steps", "both 0"]),
        ({"stages": {"publication": {"rounds": 2}}}, ["stages.publication.rounds", "0 or 1"]),
        ({"network": {"strides": [2, 2]}}, ["network.strides", "1 numbers"]),
        ({"data": {"crop": [2, 2]}, "segmentation": {"batch": 1}}, ["data.crop", "above 2"]),
    ],
)
def test_what_does_not_fit_is_named(
    study: Callable[..., Experiment], changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as told:
        study(**changes)
    assert not [part for part in parts if part not in str(told.value)], told.value


def test_pretraining_needs_another_network() -> None:
    from fedmedseg.core.jobs import find_job, read_settings

    with pytest.raises(ConfigurationError, match=r"network.name: got unet.*swin_unetr, unetr"):
        read_settings(find_job("fedata"), [{"network": {"name": "unet"}}])


def test_a_batch_norm_trains_on_a_deepest_level_of_one_voxel(study: Callable[..., Experiment]) -> None:
    assert study(data={"crop": [2, 2]}).segmentation.batch == 2
    with pytest.raises(ConfigurationError, match="norm instance_affine"):
        study(data={"crop": [2, 2]}, network={"norm": "instance_affine"})
