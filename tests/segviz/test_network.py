"""What crosses the wire is chosen by module type: 58 or 90 tensors at full size, never a head, never a norm's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.networks.factory import build_segmentation
from fedmedseg.networks.timing import StepTrial, choose
from fedmedseg.segviz.network import private_tensors, shared_part, shared_tensors

FULL = {"name": "unet", "channels": [16, 32, 64, 128, 256], "res_units": 2}
WIDE = {"crop": [32, 32, 32], "spatial_dims": 3, "labels": {1: "liver"}}


def test_the_full_network_has_the_papers_parameters(study: Callable[..., Experiment]) -> None:
    """Invariant 9."""
    model = build_segmentation(study(network=FULL, data=WIDE))
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_808_917
    assert len(model.state_dict()) == 148
    head = [tensor for name, tensor in model.named_parameters() if name.startswith("model.2.")]
    assert (len(head), sum(tensor.numel() for tensor in head)) == (7, 1845)


@pytest.mark.parametrize(
    ("section", "tensors", "numbers"),
    [
        ({"share": "fedbn"}, 58, 4_804_640),
        ({"share": "fedavg"}, 90, 4_804_640 + 2_432),
        ({"share": "fedbn", "mode": "one_model"}, 63, 4_804_640 + 1845 - 4),
        ({"share": "fedavg", "mode": "one_model"}, 97, 4_808_917),
    ],
)
def test_so_many_tensors_are_shared_at_full_size(
    study: Callable[..., Experiment], section: dict, tensors: int, numbers: int
) -> None:
    """Invariant 2; the head's norm of two channels is the site's under fedbn even where the head is shared."""
    experiment = study(network=FULL, data=WIDE, segviz=section)
    shared = shared_tensors(build_segmentation(experiment), experiment)
    assert len(shared) == tensors
    assert sum(tensor.numel() for tensor in shared.values()) == numbers
    if section["share"] == "fedbn":
        assert not [name for name in shared if "adn.N" in name]
    if "mode" not in section:
        assert not [name for name in shared if name.startswith("model.2")]
    assert not [name for name in shared if "running" in name or "num_batches" in name]


def test_each_choice_of_the_network_shapes_it(study: Callable[..., Experiment]) -> None:
    def layers(kind: type[nn.Module], **network: object) -> list[nn.Module]:
        model = build_segmentation(study(network=network, segviz={"share": "fedavg"}))
        return [one for one in model.modules() if isinstance(one, kind)]

    assert {one.stride for one in layers(nn.Conv2d)} == {(1, 1), (2, 2)}
    assert {one.stride for one in layers(nn.Conv2d, strides=[3])} == {(1, 1), (3, 3)}
    assert [layers(nn.Conv2d, channels=[width, 8])[0].out_channels for width in (4, 6)] == [4, 6]
    units = [len(layers(nn.Conv2d, res_units=number)) for number in (0, 1, 2)]
    assert units[0] < units[1] < units[2]
    assert layers(nn.BatchNorm2d)
    assert not layers(nn.InstanceNorm2d)
    for norm in ("instance", "instance_affine"):
        assert {one.affine for one in layers(nn.InstanceNorm2d, norm=norm)} == {norm == "instance_affine"}
        assert not layers(nn.BatchNorm2d, norm=norm)


@pytest.mark.parametrize("norm", ["batch", "instance_affine"])
def test_shared_and_private_tensors_make_up_the_network(study: Callable[..., Experiment], norm: str) -> None:
    experiment = study(network={"norm": norm})
    model = build_segmentation(experiment)
    shared, private = shared_tensors(model, experiment), private_tensors(model, experiment)
    assert not shared.keys() & private.keys()
    assert shared.keys() | private.keys() == model.state_dict().keys()


def test_fedbn_without_any_norm_tensor_is_refused(study: Callable[..., Experiment]) -> None:
    with pytest.raises(ConfigurationError, match=r"segviz.share: got fedbn with network.norm instance.*fedavg"):
        study(network={"norm": "instance"})
    experiment = study(network={"norm": "instance"}, segviz={"share": "fedavg"})
    model = build_segmentation(experiment)
    assert shared_part(model, experiment).shared
    wing = experiment.wing.model_copy(update={"share": "fedbn"})
    with pytest.raises(ConfigurationError, match="personal layers"):
        shared_part(model, experiment.model_copy(update={"segviz": wing}))


def test_the_trunk_starts_the_same_whatever_the_number_of_organs(study: Callable[..., Experiment]) -> None:
    trunks = []
    for labels in ({1: "disc"}, {1: "disc", 2: "square", 3: "bar"}):
        experiment = study(data={"labels": labels})
        torch.manual_seed(3)
        trunks.append(shared_tensors(build_segmentation(experiment), experiment))
    assert trunks[0].keys() == trunks[1].keys()
    assert all(torch.equal(trunks[0][name], trunks[1][name]) for name in trunks[0])


@pytest.mark.parametrize("work", ["supervised", "inference"])
def test_a_network_without_attention_is_not_timed_for_its_kernel(
    study: Callable[..., Experiment], tmp_path: Path, work: Literal["supervised", "inference"]
) -> None:
    def trial() -> StepTrial:
        raise AssertionError("nothing to choose")

    experiment = study(compute={"attention": "auto"})
    choice = choose(experiment, work=work, shape=(2, 1, 24, 24), trial=trial, cache=tmp_path, device="cpu")
    assert choice.precision == "fp32"
