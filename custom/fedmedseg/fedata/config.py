"""The ``fedata:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedmedseg.core.config import Experiment, Fraction, OptimizerSection, Positive, SwinUNETRSection
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import Strict
from fedmedseg.fedata.masking import masked_units
from fedmedseg.networks import swin, vit
from fedmedseg.networks.factory import check_network

Start = Literal["personal", "shared", "scratch"]


class EMASection(Strict):
    """Momentum of the teacher: a cosine from ``start`` to ``end`` over all steps of all rounds."""

    start: float = Field(default=0.996, ge=0.0, le=1.0)
    end: float = Field(default=1.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _rises(self) -> EMASection:
        if self.start > self.end:
            raise ValueError("ema.start not above ema.end")
        return self


class ALASection(Strict):
    """How a site learns which share of the server's attention tensors it takes."""

    step: float = Field(default=1.0, gt=0.0)
    """Step size of the mixing weights. The weights hardly leave 1 at the published 1.0, because the gradient of a
    pretext averaged over channels is small; ``mixing/weight_mean`` in the replies shows how far they went."""
    sample_share: Fraction = 0.2
    """Share of the site's volumes one pass looks at, rounded up to a volume."""
    first_passes_max: Positive = 10
    """Most passes of the first use; every later use is one pass."""
    threshold: float = Field(default=0.01, ge=0.0, lt=1.0)
    """The first use ends when the loss of a pass changed by less than this share."""


class CollapseSection(Strict):
    """When the targets are called collapsed."""

    alarm: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Alarm below this share of the teacher's spread over tokens at the site's first step."""


class Section(Strict):
    """Masked self-distillation, its mixing at the site and its rule at the server."""

    local_steps: Positive
    """Optimiser steps per site and round; the same for every site whatever its number of volumes."""
    volumes_per_step: Positive = 2
    crops_per_volume: Positive = 2
    mask_unit: Positive = swin.STRIDE
    """Edge of a masked unit in voxels; equals the stride of the distilled stage, else a token is half masked."""
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    target_blocks: Positive | None = None
    """How many of the last blocks the teacher's target averages; unset: 2 for swin_unetr, 6 for unetr."""
    predictor_hidden: Positive | None = None
    """Hidden width of the predictor; unset: the width of a token."""
    smooth_l1_beta: float = Field(default=2.0, gt=0.0)
    ema: EMASection = EMASection()
    client_mix: Literal["ala_attn", "replace"] = "ala_attn"
    """``ala_attn``: attention tensors are mixed with learned weights; ``replace``: everything from the server."""
    ala: ALASection = ALASection()
    server_aggregation: Literal["layer_att", "fedavg"] = "layer_att"
    kappa: float = Field(default=1.0, ge=0.0)
    """How strongly a site far from the shared model loses weight; 0 is FedAvg."""
    server_step: float = Field(default=1.0, gt=0.0)
    collapse: CollapseSection = CollapseSection()
    optimizer: OptimizerSection
    starts: Annotated[tuple[Start, ...], Field(min_length=1)] = ("personal", "shared", "scratch")
    """Where fine-tuning starts from; each start is trained and evaluated on its own."""

    @field_validator("starts")
    @classmethod
    def _once(cls, starts: tuple[Start, ...]) -> tuple[Start, ...]:
        if len(set(starts)) != len(starts):
            raise ValueError("each start once")
        return starts

    def top(self, experiment: Experiment) -> int:
        """Number of last blocks the target averages."""
        default = 2 if isinstance(experiment.network, SwinUNETRSection) else 6
        return self.target_blocks or min(default, _blocks(experiment))

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        check_network(experiment)
        if self.server_aggregation == "fedavg" and self.server_step != 1.0:
            raise ConfigurationError(
                "fedata.server_step",
                got=self.server_step,
                expected="1.0 with server_aggregation fedavg, which takes the mean as it is",
                remedy="remove server_step, or use layer_att with kappa 0",
            )
        crop = experiment.data.crop
        stride = swin.STRIDE if isinstance(experiment.network, SwinUNETRSection) else vit.STRIDE
        if any(edge % self.mask_unit for edge in crop):
            raise ConfigurationError(
                "fedata.mask_unit",
                got=self.mask_unit,
                expected=f"a divisor of every edge of data.crop {list(crop)}",
                remedy=f"use {stride}",
            )
        if self.mask_unit != stride:
            raise ConfigurationError(
                "fedata.mask_unit",
                got=self.mask_unit,
                expected=f"{stride}, the stride of the tokens that {experiment.network.name} distils",
                remedy=f"use {stride}, or leave mask_unit out",
            )
        units = math.prod(edge // self.mask_unit for edge in crop)
        masked = masked_units(units, self.mask_ratio)
        if masked >= units:
            raise ConfigurationError(
                "fedata.mask_ratio",
                got=self.mask_ratio,
                expected=f"a ratio that leaves at least one of the crop's {units} units visible, not {masked} masked",
                remedy="lower mask_ratio or enlarge data.crop",
            )
        blocks = _blocks(experiment)
        if self.target_blocks is not None and self.target_blocks > blocks:
            raise ConfigurationError(
                "fedata.target_blocks",
                got=self.target_blocks,
                expected=f"at most {blocks}, the blocks of the distilled stage of {experiment.network.name}",
                remedy="lower target_blocks, or leave it out",
            )


def _blocks(experiment: Experiment) -> int:
    network = experiment.network
    return network.depths[-1] if isinstance(network, SwinUNETRSection) else vit.DEPTH
