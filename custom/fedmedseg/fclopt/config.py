"""The ``fclopt:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from fedmedseg.core.bounds import LARGEST, Fraction, Positive
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import Strict, each_once, refuse_unread
from fedmedseg.core.training_settings import SGDSection
from fedmedseg.data.partitions import Rule as PartitionRule
from fedmedseg.fclopt.distance_prediction import Grain
from fedmedseg.fclopt.distance_prediction import Rule as RatioRule
from fedmedseg.networks.factory import check_network
from fedmedseg.segmentation.slice_pretraining import CollapseSection, check_slices
from fedmedseg.segmentation.stages import check_stages, check_starts

Start = Literal["personal", "shared", "scratch"]
Mode = Literal["both", "ptnu", "ptnu_dp", "closed_form", "naive", "keep_local", "online"]
STAGE = "pretraining"
PREDICTED: frozenset[Mode] = frozenset({"ptnu", "ptnu_dp", "closed_form", "naive"})
"""Modes in which every party works the target network out."""


class DistanceSection(Strict):
    """The correction of a predicted target network by its distance from the online one."""

    grain: Grain = "tensor"
    """``tensor``: one distance per parameter tensor; ``global``: one for all of them."""
    ratio: RatioRule = "last"
    """``ptnu_dp``, between anchors: the ratio of the last anchor, a moving average of all, or a straight line through
    the last three."""
    ema: float = Field(default=0.5, ge=0.0, lt=1.0)
    """``ratio: ema``: share of the average so far that a new anchor leaves."""
    warm_up: int = Field(default=3, ge=1, le=LARGEST)
    """``ptnu_dp``: so many first rounds are anchors, in which sites return their targets."""
    every: Positive = 10
    """``ptnu_dp``: after them every round whose number divides by it is one."""


class FedEMASection(Strict):
    """How much of its own model a site keeps with ``client_mix: fedema``."""

    tau: Fraction = 0.7
    """Share of its own model at the site's first mixing; it sets the factor of all later ones."""


class RateSection(SGDSection):
    """SGD with momentum, made anew for every round; within a round the rate stands still, as the prediction assumes."""

    learning_rate: float = Field(default=0.032, gt=0.0)
    weight_decay: float = Field(default=5.0e-4, ge=0.0)
    schedule: Literal["cosine", "constant"] = "cosine"
    """Over rounds: half a cosine from the rate in the first to 0 after the last, or the same in all."""


class Section(Strict):
    """Learning without negatives, and how the target network comes to every site."""

    local_steps: Positive
    """T: optimiser steps per site and round; the same for every site whatever its number of volumes."""
    mode: Mode = "ptnu_dp"
    """The target network of a new round. ``both``: the mean of all sites' travels like the online network, both ways;
    ``ptnu``: it is predicted everywhere, and corrected by distances that the server measures on the sites' targets,
    which go up in every round; ``ptnu_dp``: these go up in anchor rounds alone, and the distances between are
    predicted; ``closed_form``: prediction without correction, and no target ever travels; ``naive``: that with the
    cruder formula; ``keep_local``: each site's own goes on; ``online``: a copy of the online network."""
    momentum: float = Field(default=0.99, ge=0.0, lt=1.0)
    """m: share of itself that the target network keeps at every step."""
    distance: DistanceSection = DistanceSection()
    volumes_per_step: int = Field(default=8, ge=2, le=LARGEST)
    """Volumes of which each step sees one slice per part."""
    parts: Positive = 4
    """Parts that a stack of slices is cut into; equal parts show equal regions."""
    partition: PartitionRule = "even"
    """How (``data.partitions``)."""
    structural_weight: float = Field(default=0.5, ge=0.0)
    """lambda_s: weight of slices of other volumes in the same part as positives; 0 leaves them out."""
    hidden: Positive = 768
    """Hidden width of projector and predictor."""
    projection: Positive = 128
    """d: width of a projection."""
    head_norm: bool = True
    """Batch norm in projector and predictor."""
    client_mix: Literal["replace", "fedema"] = "replace"
    """What a round's online network takes from the server: all, or a part (FedEMA, Zhuang et al. 2022): the more a
    site's last round moved its network, the more of its own it keeps."""
    fedema: FedEMASection = FedEMASection()
    collapse: CollapseSection = CollapseSection()
    optimizer: RateSection = RateSection()
    starts: tuple[Start, ...] = ("shared", "scratch")
    """Where fine-tuning starts from; each start is trained and evaluated on its own. ``personal``: the site's own
    online encoder as its last round left it."""

    @field_validator("starts")
    @classmethod
    def _once(cls, starts: tuple[Start, ...]) -> tuple[Start, ...]:
        return each_once(starts, get_args(Start), what="start", remedy="as in fclopt.starts=[shared, scratch]")

    @property
    def predicts(self) -> bool:
        """Whether the target network is worked out by every party."""
        return self.mode in PREDICTED

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        check_slices(experiment)
        check_network(experiment)
        check_stages(experiment)
        check_starts(experiment, STAGE, own="shared")
        self._check_mixing()
        self._check_encryption(experiment)
        self._check_transport(experiment)
        self._check_unread()

    def _check_mixing(self) -> None:
        if self.client_mix == "fedema" and self.predicts:
            raise ConfigurationError(
                "fclopt.client_mix",
                got=f"fedema with fclopt.mode {self.mode}",
                expected="replace: the prediction rests on all sites starting a round from the same online network",
                remedy="set fclopt.mode to keep_local, as FedEMA has it, or client_mix to replace",
            )

    def _check_encryption(self, experiment: Experiment) -> None:
        """Refuse encrypted replies where the server has to read them."""
        if experiment.federation.encryption == "none" or not experiment.stages[STAGE].rounds:
            return
        if self.mode not in ("keep_local", "online"):
            raise ConfigurationError(
                "federation.encryption",
                got=f"{experiment.federation.encryption} with fclopt.mode {self.mode}: the server works the target "
                "network out of the online network, which it could not read",
                expected="fclopt.mode keep_local or online, whose server rule is a weighted mean",
                remedy="set fclopt.mode to keep_local, or federation.encryption to none",
            )

    def _check_transport(self, experiment: Experiment) -> None:
        """Refuse rounding on the way down where every party must come to the same bits as the server."""
        down = experiment.federation.transport_down
        if down != "fp32" and self.predicts and experiment.stages[STAGE].rounds:
            raise ConfigurationError(
                "federation.transport_down",
                got=f"{down} with fclopt.mode {self.mode}: sites work the target network out of the online networks "
                "that they are sent, the server of those it keeps, and both must be the same bits",
                expected="fp32, or a mode that predicts nothing: keep_local, online or both",
                remedy="remove federation.transport_down, or set fclopt.mode to keep_local",
            )

    def _check_unread(self) -> None:
        distance, predicted = self.distance, self.mode == "ptnu_dp"
        refuse_unread(
            self,
            "fclopt",
            {
                "fedema": (self.client_mix == "fedema", "client_mix fedema"),
                "distance": (self.mode in ("ptnu", "ptnu_dp"), "mode ptnu or ptnu_dp"),
            },
        )
        refuse_unread(
            distance,
            "fclopt.distance",
            {
                "ratio": (predicted, "mode ptnu_dp"),
                "warm_up": (predicted, "mode ptnu_dp"),
                "every": (predicted, "mode ptnu_dp"),
                "ema": (predicted and distance.ratio == "ema", "mode ptnu_dp and ratio ema"),
            },
        )
