"""The ``fedcrld:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from fedmedseg.core.bounds import Positive
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import RelocalizationSection
from fedmedseg.core.schema import Strict, each_once, one_length, refuse_unread
from fedmedseg.fedcrld.losses import Form
from fedmedseg.networks.factory import check_network
from fedmedseg.segmentation.stages import check_stages, check_starts, is_federated

Start = Literal["personal", "continued", "scratch"]
Share = Literal["encoder", "everything", "everything_but_norms", "nothing"]
STAGE = "relocalization"


class AdamSection(Strict):
    """Adam, made anew for every round, at a constant rate and without clipping, as published."""

    learning_rate: float = Field(default=3.0e-4, gt=0.0)
    """The published 1e-6 hardly moves a network that starts from nothing; the published code has 3e-4 in a comment."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0.0)


class LossSection(Strict):
    """Which terms, and in which form (``fedcrld.losses``). Distillation and history are left out by a weight of 0, the
    contrast by ``off``."""

    form: Form = "corrected"
    """``published``: cross-entropies with their arguments reversed, and the contrastive difference over the last axis
    alone, as in the published code."""
    contrast: Literal["difference", "moon", "off"] = "difference"
    """``difference``: the symmetric divergence of the published code, which knows no negatives; ``moon``: the global
    bottleneck attracts, the bank's local one repels (an option of ours)."""
    contrast_weight: float = Field(default=1.0, gt=0.0)
    temperature: float = Field(default=0.5, gt=0.0)
    """Of ``contrast: moon``."""
    distillation_weight: float = Field(default=0.2, ge=0.0)
    """Momentum distillation: the client learns from the bank's probabilities."""
    history_weight: float = Field(default=1.0, ge=0.0)
    """Both bottlenecks stay near the bank's."""

    @property
    def needs_bank(self) -> bool:
        """Whether any term looks at the bank."""
        return self.distillation_weight > 0.0 or self.history_weight > 0.0 or self.contrast == "moon"


class BankSection(Strict):
    """The momentum bank (``fedcrld.bank``)."""

    momentum: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of itself that the bank keeps at every step."""
    learning_rate: float | None = Field(default=None, ge=0.0)
    """Of the bank's own steps; unset: the client's. 0: the bank only follows."""


class Section(Strict):
    """Federated re-localization: what a site trains, and what the sites share."""

    local_steps: Positive | None = None
    """Optimiser steps per site and round, the same whatever its number of volumes."""
    local_epochs: Positive | None = None
    """Instead of ``local_steps``: passes over the site's own volumes per round, as published."""
    share: Share = "encoder"
    """``encoder``: the global encoder alone, as published; ``everything``: the whole network (FedAvg), but for the
    output layer where sites have other label maps; ``everything_but_norms``: that without the norms' parameters
    (FedBN's rule); ``nothing``: every site trains on its own."""
    weights: Literal["equal", "cases"] = "equal"
    """What a site counts in the mean: one, as published, or its number of cases."""
    loss: LossSection = LossSection()
    bank: BankSection = Field(default_factory=lambda: BankSection.model_validate({}))
    optimizer: AdamSection = AdamSection()
    starts: tuple[Start, ...] = ("personal", "scratch")
    """Which models are tested. ``personal``: the site's own after re-localization, of the round that validated best
    there; ``continued``: that one, trained on alone in fine-tuning; ``scratch``: trained alone from nothing."""

    finished: ClassVar[tuple[str, ...]] = ("personal",)
    """Starts whose models stand before fine-tuning begins."""

    @field_validator("starts")
    @classmethod
    def _once(cls, starts: tuple[Start, ...]) -> tuple[Start, ...]:
        return each_once(starts, get_args(Start), what="start", remedy="as in fedcrld.starts=[personal, scratch]")

    @model_validator(mode="after")
    def _one_length(self) -> Section:
        one_length(local_steps=self.local_steps, local_epochs=self.local_epochs)
        return self

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        if not isinstance(experiment.network, RelocalizationSection):
            raise ConfigurationError(
                "network.name",
                got=experiment.network.name,
                expected="relocalization, the network of two encoders that fedcrld trains",
                remedy="set network to {name: relocalization, width: 64}",
            )
        check_network(experiment)
        if is_federated(experiment):
            raise ConfigurationError(
                "segmentation.fine_tuning",
                got="federated",
                expected="local: what sites train together here they train in the stage relocalization",
                remedy="set it to local; fedcrld.share chooses what is averaged",
            )
        if experiment.data.whole_depth and experiment.segmentation.batch > 1:
            raise ConfigurationError(
                "segmentation.batch",
                got=experiment.segmentation.batch,
                expected="1 with data.whole_depth: volumes have other numbers of slices",
                remedy="set segmentation.batch to 1, or data.whole_depth to false",
            )
        self._check_starts(experiment)
        check_stages(experiment)
        self._check_unread()

    def _check_starts(self, experiment: Experiment) -> None:
        """Refuse models that no stage makes, and a stage whose model nobody asks for."""
        check_starts(experiment, STAGE, own="personal")
        if "continued" in self.starts and "personal" not in self.starts:
            raise ConfigurationError(
                "fedcrld.starts",
                got=list(self.starts),
                expected="personal beside continued, which goes on from it",
                remedy="add personal to fedcrld.starts",
            )

    def _check_unread(self) -> None:
        loss = self.loss
        refuse_unread(
            loss,
            "fedcrld.loss",
            {
                "contrast_weight": (loss.contrast != "off", "contrast difference or moon"),
                "temperature": (loss.contrast == "moon", "contrast moon"),
            },
        )
        refuse_unread(
            self,
            "fedcrld",
            {
                "bank": (loss.needs_bank, "loss.distillation_weight or loss.history_weight above 0, or contrast moon"),
                "weights": (self.share != "nothing", "a share other than nothing"),
            },
        )
