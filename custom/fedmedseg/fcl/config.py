"""The ``fcl:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from fedmedseg.core.bounds import Fraction, Positive
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.exchange import Transport
from fedmedseg.core.schema import Misfit, Strict, each_once, one_length, refuse_unread
from fedmedseg.core.training_settings import SGDSection
from fedmedseg.data.partitions import Rule
from fedmedseg.networks.factory import check_network
from fedmedseg.segmentation.slice_pretraining import CollapseSection, check_slices
from fedmedseg.segmentation.stages import check_stages, check_starts

Start = Literal["personal", "shared", "scratch"]
Denominator = Literal["paper", "exclude_same_partition"]
STAGE = "pretraining"
PROJECTOR = "projector."
"""Beginning of the shared names of the projector's tensors; those of the encoder are the segmentation network's own."""
MOST_PARTS = 64


class ProjectorSection(Strict):
    """What stands behind the encoder in pretraining (``networks.unet_encoder.Projector``)."""

    hidden: Positive | None = None
    """Width between its two layers; unset: the encoder's."""
    out: Positive = 128
    """Numbers of a feature: 128 is our reconstruction, and what an exchange costs is proportional to it."""
    norm: bool = False
    """Batch norm between its layers."""


class BankSection(Strict):
    """The site's own features (``fcl.bank``)."""

    size: Positive = 2048
    """Features kept, at most; of those alone a site uploads any."""
    share: Fraction = 0.8
    """And at most this share of the site's number of slices, so that a bank never holds all of them."""
    samples: Positive | None = None
    """K: how many of own and received features a step is compared with; unset: as many as the own bank holds."""


class NoiseSection(Strict):
    """Gaussian noise on features before they leave; no accounted guarantee (privacy/README.md)."""

    sigma: float = Field(default=0.0, ge=0.0, le=10.0)
    """Standard deviation on every number of a feature of length 1; 0: none."""
    renormalise: bool = True
    """Bring noisy features back to length 1. Otherwise they are sent, and compared with, as long as the noise made
    them."""


class CorrespondenceSection(Strict):
    """When sites' parts are said not to correspond (``data.stacks``)."""

    factor: float = Field(default=2.0, gt=1.0)
    """Between the largest and the smallest of the sites' medians."""


class RateSection(SGDSection):
    """SGD with momentum, linear warm-up and a cosine over all rounds; its momentum goes on from round to round."""

    learning_rate: float = Field(default=0.1, gt=0.0)
    weight_decay: float = Field(default=1.0e-5, ge=0.0)
    warmup_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest norm of a step's gradient; unset: not clipped, as in the sibling code."""


class Section(Strict):
    """Contrastive pretraining on slices, with features exchanged between sites."""

    local_steps: Positive | None = None
    """Optimiser steps per site and round, the same whatever its number of volumes."""
    local_epochs: Positive | None = None
    """Instead of ``local_steps``: as many times as many steps as see every slice of the site once on average."""
    volumes_per_step: Positive = 8
    """One slice of every part of so many volumes are a batch."""
    parts: int = Field(default=4, ge=1, le=MOST_PARTS)
    """Parts of a stack of slices, from its first slice to its last."""
    partition: Rule = "even"
    """How slices become parts (``data.partitions``)."""
    temperature: float = Field(default=0.1, ge=1.0e-3)
    denominator: Denominator = "paper"
    """``paper``: all sampled features are negatives, those of the query's own part too; ``exclude_same_partition``:
    these are left out. The query's own slice is dropped always."""
    positives: Literal["partition", "view"] = "partition"
    """Local positives. ``partition``: the batch's other volumes in the same part, and the slice's own second view;
    ``view``: that second view alone (SimCLR's)."""
    structural: bool = True
    """Global structural matching: the sampled features of the same part, own and received, are positives too."""
    warmup_rounds: int = Field(default=5, ge=0)
    """Rounds without structural matching, at first; features are exchanged, as negatives, from the first round on."""
    momentum: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Share of itself that the momentum encoder keeps at every step."""
    key_sync: Literal["reset", "keep"] = "reset"
    """The momentum encoder of a new round: a copy of the server's encoder, which keeps all sites' features in one
    space, or the site's own as its last round left it."""
    bank: BankSection = BankSection()
    upload: Literal["bank", "recompute"] = "bank"
    """What leaves at a round's end: the bank as it is, or features computed anew with the last momentum encoder."""
    exchange: bool = True
    """Whether features leave and are received. Without, and with ``positives: view`` and ``structural: false``, it is
    FedSimCLR's form with a bank for negatives."""
    most_received: Positive = 18432
    """Features that a site is sent in a round, at most: those of nine full banks of the default size. Of more, a choice
    drawn anew in every round, as even over parts and sites as what was given allows (``core.exchange``)."""
    transport: Transport = "fp32"
    """Features on the wire: ``fp16`` half, ``int8`` about a quarter of the bytes."""
    noise: NoiseSection = NoiseSection()
    aggregation: Literal["fedavg", "none"] = "fedavg"
    """``none``: every site pretrains on its own."""
    projector: ProjectorSection = ProjectorSection()
    collapse: CollapseSection = CollapseSection()
    correspondence: CorrespondenceSection = CorrespondenceSection()
    optimizer: RateSection = RateSection()
    starts: tuple[Start, ...] = ("shared", "scratch")
    """Where fine-tuning starts from; each start is trained and evaluated on its own. ``personal``: the site's encoder
    as its last round left it."""

    @field_validator("starts")
    @classmethod
    def _once(cls, starts: tuple[Start, ...]) -> tuple[Start, ...]:
        return each_once(starts, get_args(Start), what="start", remedy="as in fcl.starts=[shared, scratch]")

    @model_validator(mode="after")
    def _one_length(self) -> Section:
        one_length(local_steps=self.local_steps, local_epochs=self.local_epochs)
        if self.volumes_per_step * self.parts < 2:
            raise Misfit(
                "volumes_per_step",
                got=f"{self.volumes_per_step} with parts {self.parts}",
                expected="a batch of at least two slices",
                remedy="raise volumes_per_step",
            )
        return self

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        check_slices(experiment)
        check_network(experiment)
        check_stages(experiment)
        if self.exchange and self.aggregation == "none":
            raise ConfigurationError(
                "fcl.exchange",
                got="true with fcl.aggregation none",
                expected="false: features of encoders that are never averaged lie in spaces of their own",
                remedy="set fcl.exchange to false, or fcl.aggregation to fedavg",
            )
        if self.aggregation == "none" and "shared" in self.starts:
            raise ConfigurationError(
                "fcl.starts",
                got=list(self.starts),
                expected="personal or scratch with fcl.aggregation none: no encoder is shared",
                remedy="set fcl.starts to [personal, scratch]",
            )
        check_starts(experiment, STAGE, own="shared")
        refuse_unread(
            self,
            "fcl",
            {
                "warmup_rounds": (self.structural, "structural true"),
                "most_received": (self.exchange, "exchange true"),
                "transport": (self.exchange, "exchange true"),
                "noise": (self.exchange, "exchange true"),
                "upload": (self.exchange, "exchange true"),
                "correspondence": (self.exchange, "exchange true"),
            },
        )
        renormalise = (self.noise.sigma > 0.0, "a sigma above 0")
        refuse_unread(self.noise, "fcl.noise", {"renormalise": renormalise})
