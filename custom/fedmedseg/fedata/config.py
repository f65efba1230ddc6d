"""The ``fedata:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from fedmedseg.core.bounds import Positive
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import SwinUNETRSection
from fedmedseg.core.schema import Strict, each_once, refuse_unread
from fedmedseg.core.training_settings import OptimizerSection
from fedmedseg.fedata.masking import masked_units
from fedmedseg.fedata.mixing_config import ALASection, ClientMix, EMASection, FedEMASection, TeacherSync, check_mixing
from fedmedseg.fedata.pretext_config import DecoderSection, IbotSection, MaskedTokens, PretextName, check_pretext
from fedmedseg.networks import swin, vit
from fedmedseg.networks.factory import READERS, check_network
from fedmedseg.segmentation.stages import check_stages

Start = Literal["personal", "shared", "scratch"]


class FedAttSection(Strict):
    """Constants of ``server_aggregation: fedatt_faithful``; the defaults are those of the published code."""

    step: float = Field(default=1.2, gt=0.0)
    """Share of the aggregated difference that is taken."""
    noise: float = Field(default=0.001, ge=0.0)
    """Standard deviation of the noise added to every shared tensor after each round."""


class PairSection(Strict):
    """Personal models, ``server_aggregation: pair_att``."""

    temperature: float = Field(default=0.1, ge=1e-3)
    """Divides the cosine of two sites' updates before the softmax: the lower, the more each site keeps to itself."""
    prox: float = Field(default=0.0, ge=0.0)
    """prox / 2 times the squared distance to the model the site was sent is added to its loss; 0 leaves it out.
    Reconstruction: the method has such a term, but no published figure for it suits this objective. The pretext's
    gradient is small: 0.001 already shortens the way a site goes from what it was sent, see ``loss/prox``."""


class CollapseSection(Strict):
    """When the targets are called collapsed."""

    alarm: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Alarm below this share of the teacher's spread over tokens at the site's first step."""


class Section(Strict):
    """Masked self-distillation, its mixing at the site and its rule at the server."""

    local_steps: Positive
    """Optimiser steps per site and round; the same for every site whatever its number of volumes."""
    pretext: PretextName = "distillation"
    """``distillation``: the teacher's latent tokens at masked places; ``ibot``: its distribution over prototypes there;
    ``simmim``: pixels by a linear layer; ``mae``: normalised pixels by a decoder. The last two have no teacher."""
    masked_tokens: MaskedTokens | None = None
    """``drop``: masked tokens stay out of the encoder and a decoder predicts them; ``replace``: a mask token takes
    their place. Unset: drop for unetr (but for simmim), replace for swin_unetr."""
    decoder: DecoderSection = DecoderSection()
    ibot: IbotSection = IbotSection()
    class_weight: float = Field(default=0.0, ge=0.0)
    """ibot: weight of the same cross-entropy between the pooled tokens of a volume's two crops."""
    pixel_weight: float = Field(default=0.0, ge=0.0)
    """distillation and ibot: weight of the mean absolute error of masked pixels."""
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
    teacher_sync: TeacherSync = "keep"
    """The teacher of a new round. ``keep``: the site's own goes on; ``reset``: a copy of the student as it starts the
    round; ``aggregate``: the mean of all sites' teachers, which travel beside the students and double the traffic."""
    client_mix: ClientMix = "ala_attn"
    """What a round's student takes from the server's and what from the site's last one. ``ala_attn``: attention
    tensors are mixed with learned weights; ``ala_all``: all tensors are; ``keep_attn_local``: attention tensors stay
    the site's own from its first round on; ``fedema``: all tensors in one proportion, by how far the site's last
    round moved them; ``replace``: everything from the server. What is not mixed comes from the server."""
    ala: ALASection = ALASection()
    fedema: FedEMASection = FedEMASection()
    server_aggregation: Literal["layer_att", "fedavg", "pair_att", "fedatt_faithful", "none"] = "layer_att"
    """``layer_att``: sites far from the shared model weigh less, per layer group; ``fedavg``: the mean over cases;
    ``pair_att``: a model of its own for each site, from the sites whose updates are alike; ``fedatt_faithful``: FedAtt
    as published; ``none``: every site pretrains on its own."""
    kappa: float = Field(default=1.0, ge=0.0)
    """How strongly a site far from the shared model loses weight under layer_att; 0 is FedAvg."""
    standardised: bool = False
    """layer_att divides by the spread of the distances, not by their mean: two sites are then always told apart."""
    server_step: float = Field(default=1.0, gt=0.0)
    """Share of the aggregated difference that layer_att takes."""
    fedatt: FedAttSection = FedAttSection()
    pair: PairSection = PairSection()
    collapse: CollapseSection = CollapseSection()
    optimizer: OptimizerSection
    starts: tuple[Start, ...] = ("personal", "shared", "scratch")
    """Where fine-tuning starts from; each start is trained and evaluated on its own."""

    @field_validator("starts")
    @classmethod
    def _once(cls, starts: tuple[Start, ...]) -> tuple[Start, ...]:
        return each_once(starts, get_args(Start), what="start", remedy="as in fedata.starts=[shared, scratch]")

    def top(self, experiment: Experiment) -> int:
        """Number of last blocks that the teacher is asked for: those the distillation target averages, else one."""
        if self.pretext != "distillation":
            return 1
        default = 2 if isinstance(experiment.network, SwinUNETRSection) else 6
        return self.target_blocks or min(default, _blocks(experiment))

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        if experiment.network.name not in READERS:
            raise ConfigurationError(
                "network.name",
                got=experiment.network.name,
                expected=f"one of {', '.join(sorted(READERS))}: masks hide tokens, and this network has none",
            )
        check_network(experiment)
        check_stages(experiment)
        self._check_starts(experiment)
        self._check_encryption(experiment)
        self._check_robust(experiment)
        refuse_unread(self, "fedata", self._server_readers())
        check_pretext(self, experiment)
        check_mixing(self)
        self._check_mask(experiment)
        blocks = _blocks(experiment)
        if self.target_blocks is not None and self.target_blocks > blocks:
            raise ConfigurationError(
                "fedata.target_blocks",
                got=self.target_blocks,
                expected=f"at most {blocks}, the blocks of the distilled stage of {experiment.network.name}",
                remedy="lower target_blocks, or leave it out",
            )

    def _check_mask(self, experiment: Experiment) -> None:
        """Refuse units that are not tokens, and a ratio that hides all of them."""
        stride = swin.STRIDE if isinstance(experiment.network, SwinUNETRSection) else vit.STRIDE
        # the crop's edges divide by the stride, as the network asks for it
        if self.mask_unit != stride:
            raise ConfigurationError(
                "fedata.mask_unit",
                got=self.mask_unit,
                expected=f"{stride}, the stride of the tokens that {experiment.network.name} distils",
                remedy=f"use {stride}, or leave mask_unit out",
            )
        units = math.prod(edge // self.mask_unit for edge in experiment.data.crop)
        masked = masked_units(units, self.mask_ratio)
        if masked >= units:
            raise ConfigurationError(
                "fedata.mask_ratio",
                got=self.mask_ratio,
                expected=f"a ratio that leaves at least one of the crop's {units} units visible, not {masked} masked",
                remedy="lower mask_ratio or enlarge data.crop",
            )

    def _check_robust(self, experiment: Experiment) -> None:
        """Refuse another rule in place of a mean that this study does not take."""
        robust = experiment.federation.robust
        if robust.rule != "mean" and self.server_aggregation != "fedavg":
            raise ConfigurationError(
                "federation.robust.rule",
                got=f"{robust.rule} with fedata.server_aggregation {self.server_aggregation}",
                expected="mean, which clip may bound: the study's own rule weighs sites by their updates",
                remedy="set fedata.server_aggregation to fedavg, or federation.robust.rule to mean",
            )

    def _check_encryption(self, experiment: Experiment) -> None:
        """Refuse encrypted replies where the server's rule has to read them."""
        if experiment.federation.encryption == "none" or not experiment.stages["pretraining"].rounds:
            return
        reads = {
            "layer_att": "attention weighs sites by the distances of their replies",
            "fedatt_faithful": "attention weighs sites by the norms of their replies",
            "pair_att": "personal models rest on the cosines of sites' replies",
        }.get(self.server_aggregation)
        if reads is not None:
            raise ConfigurationError(
                "federation.encryption",
                got=f"{experiment.federation.encryption} with fedata.server_aggregation {self.server_aggregation}: "
                f"{reads}, which the server could not read",
                expected="fedata.server_aggregation fedavg, a weighted mean",
                remedy="set it to fedavg, pretraining's rounds to 0, or federation.encryption to none",
            )

    def _check_starts(self, experiment: Experiment) -> None:
        """Refuse starts that nothing leads to, and a pretraining or a pretrained encoder that leads nowhere."""
        pretrained = experiment.network.pretrained is not None
        allowed = ["shared", "scratch"] if pretrained else ["scratch"]
        rounds = experiment.stages["pretraining"].rounds
        if rounds and set(self.starts) == {"scratch"}:
            raise ConfigurationError(
                "stages.pretraining.rounds",
                got=rounds,
                expected="0 where fedata.starts is [scratch]: no start would use what is pretrained",
                remedy="set stages.pretraining.rounds to 0, or add personal or shared to fedata.starts",
            )
        if not rounds and not set(self.starts) <= set(allowed):
            raise ConfigurationError(
                "fedata.starts",
                got=list(self.starts),
                expected=f"{' or '.join(allowed)} alone where stages.pretraining.rounds is 0",
                remedy=f"set starts to [{', '.join(allowed)}], or give pretraining its rounds",
            )
        if pretrained and set(self.starts) == {"scratch"}:
            raise ConfigurationError(
                "network.pretrained",
                got="an encoder",
                expected="nothing where fedata.starts is [scratch]: no start would use it",
                remedy="add shared to fedata.starts, or leave the encoder out",
            )

    def _server_readers(self) -> dict[str, tuple[bool, str]]:
        """Per setting: whether this server rule reads it, and which one would."""
        rule = self.server_aggregation
        layer = "server_aggregation layer_att"
        return {
            "kappa": (rule == "layer_att", layer),
            "standardised": (rule == "layer_att" and self.kappa > 0.0, f"{layer} and a kappa above 0"),
            "server_step": (rule == "layer_att", layer),
            "fedatt": (rule == "fedatt_faithful", "server_aggregation fedatt_faithful"),
            "pair": (rule == "pair_att", "server_aggregation pair_att"),
        }


def _blocks(experiment: Experiment) -> int:
    network = experiment.network
    return network.depths[-1] if isinstance(network, SwinUNETRSection) else vit.DEPTH
