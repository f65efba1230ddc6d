"""What a definition builds, with the weights, answers as the network does; what does not is not accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from fedmedseg.core.errors import FedMedSegError
from fedmedseg.export.bundle import configuration
from fedmedseg.export.network import Exportable, exportable, require_agreement
from fedmedseg.segmentation.models import load_for_inference

THREE: dict[str, Any] = {
    "role": "shapes", "modality": "mr", "spatial_dims": 3, "labels": {1: "disc", 2: "bar"}, "phantom": None,
    "spacing": [None, None, None],
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {},
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
}  # fmt: skip
BY_MONAI = {"unet": True, "basic_unet": False, "swin_unetr": True, "unetr": True}
"""BasicUNet's group norms and centre are changed after MONAI built it."""


def parsed(source: Exportable) -> torch.nn.Module:
    """The network as MONAI's parser builds it from what a bundle holds."""
    network: torch.nn.Module = ConfigParser(configuration(source)).get_parsed_content("network_def")
    network.load_state_dict(source.network.state_dict())
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_monais_parser_builds_the_very_network(model_file: Callable[..., Path], name: str) -> None:
    source = exportable(load_for_inference(model_file(**NETWORKS[name])))
    assert source.by_monai is BY_MONAI[name]
    assert require_agreement(source, parsed(source), what="x") <= 1e-6


def test_a_network_of_our_own_is_built_by_this_package(model_file: Callable[..., Path]) -> None:
    network = {"name": "relocalization", "width": 8}
    data = THREE | {"crop": [16, 16, 4], "alternatives": []}
    source = exportable(load_for_inference(model_file(system="fedcrld", data=data, network=network)))
    assert not source.by_monai
    assert require_agreement(source, parsed(source), what="x") == 0.0


def test_other_answers_are_refused(model_file: Callable[..., Path]) -> None:
    source = exportable(load_for_inference(model_file()))
    assert require_agreement(source, source.network, what="x") == 0.0

    def louder(images: torch.Tensor) -> torch.Tensor:
        return source.network(images) * 1.01

    with pytest.raises(FedMedSegError, match="x: got probabilities that differ"):
        require_agreement(source, louder, what="x")
    with pytest.raises(FedMedSegError, match="differ by nan"):
        require_agreement(source, lambda images: source.network(images) * torch.nan, what="x")
    with pytest.raises(FedMedSegError, match="shape"):
        require_agreement(source, lambda images: source.network(images)[:, :2], what="x")
