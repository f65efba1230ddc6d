"""Small studies on either backbone, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedmedseg.core.config import Experiment

SWIN = {"name": "swin_unetr", "feature_size": 12, "window": 4, "depths": (1, 1, 1, 2)}
UNETR = {"name": "unetr", "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "heads": 2}
BASIC: dict[str, Any] = {"name": "basic_unet"}
SMALL = {"swin_unetr": SWIN, "unetr": UNETR, "basic_unet": BASIC}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study("swin_unetr", (64, 64), window=7): an experiment without any system's section."""

    def make(name: str, crop: tuple[int, ...], **network: Any) -> Experiment:
        return Experiment.model_validate(
            {
                "system": "none",
                "study": "test",
                "data": {
                    "role": "cmr",
                    "modality": "mr",
                    "spatial_dims": len(crop),
                    "labels": {1: "left", 2: "right"},
                    "crop": crop,
                },
                "network": {**SMALL[name], **network},
                "segmentation": {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
                "stages": {},
            }
        )

    return make
