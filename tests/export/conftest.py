"""Models of a few hundred parameters with weights of their own, as files on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import moved, tiny

from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.segmentation.models import save_model
from fedmedseg.segmentation.starts import initial_network

TINY = tiny(spacing=(1.5, None, None))

THREE: dict[str, Any] = {
    "role": "shapes", "modality": "mr", "spatial_dims": 3, "labels": {1: "disc", 2: "bar"}, "phantom": None,
    "spacing": [None, None, None],
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {},
    "unet_3d": {"data": THREE | {"crop": [16, 16, 8]}},
    "basic_unet": {"network": {"name": "basic_unet", "features": [8, 8, 8, 8, 8], "norm": "group"}},
    "swin_unetr": {
        "network": {
            "name": "swin_unetr", "feature_size": 12, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": 2
        },
        "data": THREE | {"crop": [64, 32, 32]},
    },
    "unetr": {
        "network": {"name": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "heads": 3},
        "data": THREE | {"crop": [16, 16, 16]},
    },
    "relocalization": {
        "system": "fedcrld",
        "network": {"name": "relocalization", "width": 8},
        "data": THREE | {"crop": [16, 16, 4], "alternatives": []},
    },
}  # fmt: skip
"""What makes each network of the factory small."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model_file(tmp_path: Path) -> Callable[..., Path]:
    """model_file(data={...}, network={...}): a model of the tiny study with changes, its weights moved."""

    def make(*, system: str = "fedavg", **changes: Any) -> Path:
        study = read_settings(find_job(system), [{**TINY, **changes}])[1]
        network = initial_network(study)
        moved(network, by=0.1, seed=3)
        file = tmp_path / "personal.safetensors"
        save_model(file, network.state_dict(), experiment=study, start="personal", run="r1")
        return tmp_path / "personal.safetensors"

    return make
