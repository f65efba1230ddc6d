"""The section ``network`` of experiment.yaml: one model for each kind of network."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedmedseg.core.bounds import LARGEST, Digest, Positive
from fedmedseg.core.schema import Misfit, Strict


class SwinUNETRSection(Strict):
    """MONAI SwinUNETR; the field's usual size is feature_size 48, window 7."""

    name: Literal["swin_unetr"]
    feature_size: int = Field(48, gt=0, le=LARGEST, multiple_of=12)
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 2, 2)
    heads: tuple[Positive, Positive, Positive, Positive] = (3, 6, 12, 24)
    window: Positive = 7
    drop_path: float = Field(0.0, ge=0.0, lt=1.0)
    pretrained: Digest | None = None
    """SHA-256 of the encoder that pretraining starts from, which lies in the job's config folder
    (``core.encoder_file``); unset: random weights from the study's seed."""

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return 32


class UNETRSection(Strict):
    """MONAI UNETR on a 12-layer ViT with 16-voxel patches."""

    name: Literal["unetr"]
    feature_size: Positive = 16
    hidden_size: Positive = 768
    mlp_dim: Positive = 3072
    heads: Positive = 12
    pretrained: Digest | None = None
    """As in ``SwinUNETRSection``."""

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return 16

    @model_validator(mode="after")
    def _heads_divide(self) -> UNETRSection:
        if self.hidden_size % self.heads:
            raise Misfit(
                "heads",
                got=self.heads,
                expected=f"a divisor of network.hidden_size ({self.hidden_size})",
                remedy="change network.heads or network.hidden_size",
            )
        return self


class RelocalizationSection(Strict):
    """FedCRLD's network of a shared and a private encoder; its own system builds it (``fedcrld.network``)."""

    name: Literal["relocalization"]
    width: int = Field(64, gt=0, le=LARGEST, multiple_of=8)
    """Channels of the first block; 64 is the published size."""
    faithful_reshape: bool = False
    """Tokens of the attention by a raw reshape that mixes channels and positions, as in the published code."""
    pretrained: None = None
    """No encoder file exists for this network."""

    @property
    def input_multiple(self) -> int:
        """Both in-plane edges of a crop divide by this; any number of slices will do."""
        return 8


class UNetSection(Strict):
    """MONAI UNet, residual; the defaults are the 4.8 M parameters of SegViz's public code."""

    name: Literal["unet"]
    channels: tuple[Positive, ...] = Field((16, 32, 64, 128, 256), min_length=2)
    strides: tuple[Positive, ...] | None = None
    """From one level to the next; unset: 2 everywhere."""
    res_units: int = Field(2, ge=0, le=LARGEST)
    norm: Literal["batch", "instance", "instance_affine"] = "batch"
    """``instance`` is MONAI's default: without a scale and a shift of its own, and so without any tensor."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The strides, written out."""
        return self.strides or (2,) * (len(self.channels) - 1)

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return math.prod(self.steps)

    @property
    def pretrained(self) -> None:
        """No pretraining is made for it."""
        return None

    @model_validator(mode="after")
    def _a_stride_between_levels(self) -> UNetSection:
        if len(self.steps) != len(self.channels) - 1:
            raise Misfit(
                "strides",
                got=list(self.steps),
                expected=f"{len(self.channels) - 1} numbers, one between two of the {len(self.channels)} channels",
                remedy="give one fewer than channels, or leave strides out",
            )
        return self


class BasicUNetSection(Strict):
    """MONAI BasicUNet: two convolutions a level, max-pooling; the defaults are those of FCL's sibling code on ACDC."""

    name: Literal["basic_unet"]
    features: tuple[Positive, Positive, Positive, Positive, Positive] = (48, 96, 192, 384, 768)
    """Channels of the encoder's four levels and its centre; the last level of the decoder has those of the first."""
    norm: Literal["batch", "instance", "group"] = "batch"
    """``group``: GroupNorm of 8 channels a group, which no batch leaks through."""
    centre: Literal["plain", "norm"] = "plain"
    """``plain``: convolution and ReLU without a norm, as in the sibling code; ``norm``: as on the levels above."""
    pretrained: None = None
    """No encoder file exists for this network."""

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return 16

    @model_validator(mode="after")
    def _groups_divide(self) -> BasicUNetSection:
        if self.norm == "group" and any(width % 8 for width in self.features):
            raise Misfit(
                "features",
                got=list(self.features),
                expected="multiples of 8 with network.norm group, whose groups are 8 channels wide",
                remedy="change network.features, or use batch or instance",
            )
        return self


NetworkSection = Annotated[
    SwinUNETRSection | UNETRSection | UNetSection | BasicUNetSection | RelocalizationSection,
    Field(discriminator="name"),
]
