"""One way to build a study's segmentation network, and to name the encoder tensors that pretraining trains."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import (
    BasicUNetSection,
    RelocalizationSection,
    SwinUNETRSection,
    UNETRSection,
    UNetSection,
)
from fedmedseg.core.partition import partition
from fedmedseg.networks import swin, vit

ENCODERS = {"swin_unetr": "swinViT", "unetr": "vit", "relocalization": "globalnet"}
"""Where each network keeps its (shared) encoder; the first part of every encoder tensor's name."""

ENCODER_LEVELS = ("conv_0", "down_1", "down_2", "down_3", "down_4")
"""The submodules of a BasicUNet that are its encoder, in their order."""

SLOPE = 0.01
"""Of BasicUNet's leaky ReLU; its convolutions start from He's normal distribution for it, and without a bias."""
GROUP_WIDTH = 8
"""Channels of one group of GroupNorm."""

READERS: dict[str, Any] = {"swin_unetr": swin, "unetr": vit}
"""What knows the inside of each encoder of tokens."""

BUILT_BY = {"relocalization": "fedcrld"}
"""Networks that one system alone knows: its module ``network`` builds them."""


def build_segmentation(experiment: Experiment) -> nn.Module:
    """The study's network: ``(B, 1, *crop)`` images to ``(B, classes, *crop)`` logits.

    Weights come from torch's global generator as the caller seeded it, and from nothing else.

    Raises:
        ConfigurationError: see ``check_network``.
    """
    from monai.networks import nets

    check_network(experiment)
    data, network = experiment.data, experiment.network
    if isinstance(network, RelocalizationSection):
        built: nn.Module = system_module(BUILT_BY[network.name], "network").build(data, network)
        return built
    if isinstance(network, BasicUNetSection):
        return _basic_unet(data, network)
    kind, arguments = stock(data, network)
    model: Any = getattr(nets, kind)(**arguments)
    if isinstance(network, UNETRSection):
        for block in model.vit.blocks:
            # UNETR does not pass the option on; without dropout it is the same sum in one kernel
            block.attn.use_flash_attention = True
    return model


def stock(data: DataSection, network: SwinUNETRSection | UNETRSection | UNetSection) -> tuple[str, dict[str, Any]]:
    """Class of ``monai.networks.nets`` and the arguments, plain values, that build ``network`` for ``data``."""
    common = {"in_channels": 1, "out_channels": data.classes, "spatial_dims": data.spatial_dims}
    if isinstance(network, SwinUNETRSection):
        return "SwinUNETR", {
            **common,
            "feature_size": network.feature_size,
            "depths": list(network.depths),
            "num_heads": list(network.heads),
            "window_size": network.window,
            "dropout_path_rate": network.drop_path,
            # MONAI uses it where no gradient is recorded: the teacher, validation and inference
            "use_flash_attention": True,
        }
    if isinstance(network, UNetSection):
        return "UNet", {
            **common,
            "channels": list(network.channels),
            "strides": list(network.steps),
            "num_res_units": network.res_units,
            "norm": _norm(network),
        }
    return "UNETR", {
        **common,
        "img_size": list(data.crop),
        "feature_size": network.feature_size,
        "hidden_size": network.hidden_size,
        "mlp_dim": network.mlp_dim,
        "num_heads": network.heads,
    }


def encoder_names(model: nn.Module, experiment: Experiment) -> list[str]:
    """State-dict names of the encoder tensors that pretraining trains and a site shares.

    SwinUNETR: ``swinViT.*`` without the patch merging after the last stage. UNETR: ``vit.*`` without the norms of
    a cross-attention it does not have. Relocalization: ``globalnet.*``. Parameters only: integer buffers follow from
    the settings. BasicUNet: its first convolutions and the four levels below; the running statistics of batch norm
    are among them, without which nobody else's weights mean what they meant.
    """
    if isinstance(experiment.network, BasicUNetSection):
        return list(partition(model, within=ENCODER_LEVELS, buffers=True).shared)
    kind, prefix = experiment.network.name, encoder_place(experiment)
    if kind not in READERS:
        return list(partition(model, within=(prefix,)).shared)
    unreached = [f"{prefix}.{name}" for name in READERS[kind].unreached(getattr(model, prefix))]
    return list(partition(model, within=(prefix,), without=unreached).shared)


def encoder_place(experiment: Experiment) -> str:
    """Where the study's network keeps its encoder.

    Raises:
        ConfigurationError: it has none that pretraining trains.
    """
    kind = experiment.network.name
    if kind not in ENCODERS:
        raise ConfigurationError(
            "network.name",
            got=kind,
            expected=f"a network with an encoder of its own: {' or '.join(ENCODERS)}",
            remedy="choose one of these for pretraining and pretrained encoders",
        )
    return ENCODERS[kind]


def check_network(experiment: Experiment) -> None:
    """Refuse settings that MONAI would accept and then fail on in the middle of a step.

    Raises:
        ConfigurationError: heads that do not divide a stage's channels, or a crop whose deepest
            feature map is a single voxel, on which normalisation cannot train.
    """
    network, crop = experiment.network, experiment.data.crop
    if isinstance(network, UNETRSection):
        return
    if isinstance(network, UNetSection | BasicUNetSection):
        _check_deepest(experiment, network)
        return
    if isinstance(network, RelocalizationSection):
        if experiment.data.spatial_dims != 3:
            raise ConfigurationError(
                "data.spatial_dims",
                got=experiment.data.spatial_dims,
                expected="3 for relocalization, which takes stacks of slices",
                remedy="set data.spatial_dims to 3 and give data.crop three numbers",
            )
        return
    for stage, heads in enumerate(network.heads):
        channels = network.feature_size * 2**stage
        if channels % heads:
            raise ConfigurationError(
                f"network.heads[{stage}]",
                got=heads,
                expected=f"a divisor of the stage's {channels} channels",
                remedy="change network.heads or network.feature_size",
            )
    if all(edge == network.input_multiple for edge in crop):
        raise ConfigurationError(
            "data.crop",
            got=list(crop),
            expected=f"at least one edge above {network.input_multiple} for swin_unetr",
            remedy=f"use {2 * network.input_multiple} on at least one axis",
        )


def _check_deepest(experiment: Experiment, network: UNetSection | BasicUNetSection) -> None:
    """Batch norm needs two values of a channel in a batch, instance norm two in an item."""
    if isinstance(network, BasicUNetSection) and (network.centre == "plain" or network.norm == "group"):
        return
    alone = network.norm != "batch" or experiment.segmentation.batch == 1
    if alone and all(edge == network.input_multiple for edge in experiment.data.crop):
        raise ConfigurationError(
            "data.crop",
            got=list(experiment.data.crop),
            expected=f"at least one edge above {network.input_multiple} for {network.name} with norm {network.norm} "
            f"and batches of {experiment.segmentation.batch}",
            remedy=f"use {2 * network.input_multiple} on at least one axis",
        )


def _basic_unet(data: DataSection, network: BasicUNetSection) -> nn.Module:
    from monai.networks.nets import BasicUNet

    norm: Any = {
        "batch": "batch",
        "instance": ("instance", {"affine": True}),
        "group": ("group", {"num_groups": 1}),
    }[network.norm]
    features = (*network.features, network.features[0])
    model = BasicUNet(
        spatial_dims=data.spatial_dims,
        in_channels=1,
        out_channels=data.classes,
        features=features,
        act=("LeakyReLU", {"negative_slope": SLOPE, "inplace": True}),
        norm=norm,
    )
    if network.norm == "group":
        _group_by_channels(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    if network.centre == "plain":
        for convolution in model.down_4.convs.children():  # type: ignore[union-attr]
            convolution.adn = nn.Sequential(OrderedDict(A=nn.ReLU(inplace=True)))
    return model


def _group_by_channels(model: nn.Module) -> None:
    """MONAI gives every level equally many groups; here every group is equally wide."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = module.num_channels // GROUP_WIDTH


def _norm(network: UNetSection) -> str | tuple[str, dict[str, bool]]:
    return ("instance", {"affine": True}) if network.norm == "instance_affine" else network.norm
