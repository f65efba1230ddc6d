"""Settings of the pretexts beyond the default's, and which of them mean something together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from fedmedseg.core.bounds import Positive
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import SwinUNETRSection
from fedmedseg.core.schema import Misfit, Strict, refuse_unread
from fedmedseg.fedata.decoder import width_step

if TYPE_CHECKING:
    from fedmedseg.fedata.config import Section

PretextName = Literal["distillation", "ibot", "simmim", "mae"]
MaskedTokens = Literal["drop", "replace"]


class DecoderSection(Strict):
    """The light transformer that predicts at hidden places."""

    depth: Positive = 2
    width: Positive | None = None
    """Unset: half the width of a token, rounded up to what heads and positions divide."""
    heads: Positive = 6


class IbotSection(Strict):
    """Head, temperatures and centre of ``pretext: ibot``."""

    hidden: Positive = 2048
    bottleneck: Positive = 256
    prototypes: int = Field(default=8192, ge=2)
    student_temperature: float = Field(default=0.1, gt=0.0)
    teacher_temperature: float = Field(default=0.04, gt=0.0)
    """At the first step; it rises linearly."""
    teacher_temperature_end: float = Field(default=0.07, gt=0.0)
    temperature_warmup: float = Field(default=0.06, ge=0.0, le=1.0)
    """Share of the steps of all rounds over which it rises; SMIT's 30 of 500 epochs (reconstruction)."""
    centre_momentum: float = Field(default=0.9, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _rises(self) -> IbotSection:
        if self.teacher_temperature > self.teacher_temperature_end:
            raise Misfit(
                "teacher_temperature",
                got=self.teacher_temperature,
                expected="ibot.teacher_temperature not above ibot.teacher_temperature_end",
            )
        return self


def drops_masked(section: Section, experiment: Experiment) -> bool:
    """Whether the encoder leaves masked tokens out; unset, a ViT does unless its masked tokens are what is read."""
    if section.masked_tokens is None:
        return not isinstance(experiment.network, SwinUNETRSection) and section.pretext != "simmim"
    return section.masked_tokens == "drop"


def has_decoder(section: Section, experiment: Experiment) -> bool:
    """Whether the decoder predicts."""
    return section.pretext == "mae" or drops_masked(section, experiment)


def check_pretext(section: Section, experiment: Experiment) -> None:
    """Refuse settings that the chosen pretext does not read, and combinations that cannot work.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and how to mend it.
    """
    drops = drops_masked(section, experiment)
    if drops and isinstance(experiment.network, SwinUNETRSection):
        raise ConfigurationError(
            "fedata.masked_tokens",
            got="drop",
            expected="replace with swin_unetr, whose shifted windows need the whole grid of tokens",
            remedy="leave masked_tokens out, or use network unetr",
        )
    if drops and section.pretext == "simmim":
        raise ConfigurationError(
            "fedata.masked_tokens",
            got="drop",
            expected="replace with pretext simmim, whose linear head reads the masked tokens themselves",
            remedy="leave masked_tokens out, or use pretext mae",
        )
    refuse_unread(section, "fedata", _readers(section, experiment))
    if section.class_weight and section.crops_per_volume != 2:
        raise ConfigurationError(
            "fedata.crops_per_volume",
            got=section.crops_per_volume,
            expected="2 with class_weight, which compares the two crops of a volume",
            remedy="use 2, or set class_weight to 0",
        )
    step = width_step(heads=section.decoder.heads, spatial_dims=experiment.data.spatial_dims)
    if section.decoder.width is not None and section.decoder.width % step:
        raise ConfigurationError(
            "fedata.decoder.width",
            got=section.decoder.width,
            expected=f"a multiple of {step} ({section.decoder.heads} heads, {experiment.data.spatial_dims}D positions)",
            remedy="change decoder.width or decoder.heads, or leave decoder.width out",
        )


def _readers(section: Section, experiment: Experiment) -> dict[str, tuple[bool, str]]:
    """Per setting: whether this pretext reads it, and which one would."""
    latent = section.pretext in ("distillation", "ibot")
    decodes = has_decoder(section, experiment)
    return {
        "target_blocks": (section.pretext == "distillation", "pretext distillation"),
        "smooth_l1_beta": (section.pretext == "distillation", "pretext distillation"),
        "predictor_hidden": (
            section.pretext == "distillation" and not decodes,
            "pretext distillation with masked_tokens replace",
        ),
        "decoder": (decodes, "pretext mae or masked_tokens drop"),
        "ibot": (section.pretext == "ibot", "pretext ibot"),
        "class_weight": (section.pretext == "ibot", "pretext ibot"),
        "pixel_weight": (latent, "pretext distillation or ibot"),
        "ema": (latent, "pretext distillation or ibot (which have a teacher)"),
        "teacher_sync": (latent, "pretext distillation or ibot (which have a teacher)"),
        "collapse": (latent, "pretext distillation or ibot (which have a teacher)"),
    }
