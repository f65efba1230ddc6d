"""What a definition builds, with the weights, answers as the network does; what does not is not accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from tests.export.conftest import NETWORKS

from fedmedseg.core.errors import FedMedSegError
from fedmedseg.export.bundle import configuration
from fedmedseg.export.network import Exportable, exportable, require_agreement
from fedmedseg.segmentation.models import load_for_inference

BY_MONAI = {
    "unet": True,
    "unet_3d": True,
    "basic_unet": False,
    "swin_unetr": True,
    "unetr": True,
    "relocalization": False,
}
"""BasicUNet's group norms and centre are changed after MONAI built it; FedCRLD's network is of this package."""


def parsed(source: Exportable) -> torch.nn.Module:
    """The network as MONAI's parser builds it from what a bundle holds."""
    network: torch.nn.Module = ConfigParser(configuration(source)).get_parsed_content("network_def")
    network.load_state_dict(source.network.state_dict())
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parser_builds_the_very_network(model_file: Callable[..., Path], name: str) -> None:
    source = exportable(load_for_inference(model_file(**NETWORKS[name])))
    assert source.by_monai is BY_MONAI[name]
    assert require_agreement(source, parsed(source), what="x") <= 1e-6


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
