"""The ``fedavg:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import UNetSection
from fedmedseg.core.schema import Strict, each_once, refuse_unread
from fedmedseg.core.training_settings import SGDSection
from fedmedseg.networks.factory import BUILT_BY, check_network
from fedmedseg.segmentation.stages import check_stages, check_starts, is_federated

Start = Literal["personal", "continued", "scratch"]
Strategy = Literal["fedavg", "fedprox", "fedopt", "scaffold", "ditto", "fedbn"]
STAGE = "training"
BESIDE = {"fedprox": 2, "ditto": 2, "scaffold": 4}
"""Strategies that hold the received network beside the one they train: copies of the network that this makes. A penalty
keeps all differences for the backward pass; control variates are the site's, the common ones and what corrects a step.
"""


class LocalSGDSection(SGDSection):
    """Stochastic gradient descent at a site, made anew for every round."""

    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    warmup_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    clip_norm: float = Field(default=3.0, gt=0.0)


class ServerSection(Strict):
    """FedOpt (Reddi et al. 2021): the mean of the sites' differences is the gradient of an optimiser at the server."""

    optimizer: Literal["sgd", "adam", "adagrad"] = "sgd"
    """``sgd`` with momentum is FedAvgM (Hsu et al. 2019)."""
    learning_rate: float = Field(default=1.0, gt=0.0)
    momentum: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Of ``sgd``; the default is that of FLARE's examples."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of ``adam``. torch's Adam corrects the bias of its moments, which the paper's does not."""
    epsilon: float = Field(default=1.0e-3, gt=0.0)
    """Of ``adam`` and ``adagrad``: the paper's tau, the larger the less adaptive."""


class Section(Strict):
    """How the sites' networks become one."""

    strategy: Strategy = "fedavg"
    """``fedavg`` (McMahan et al. 2017); ``fedprox`` (Li et al. 2020): sites are held near what they received;
    ``fedopt``: an optimiser at the server; ``scaffold`` (Karimireddy et al. 2020): control variates take the drift of
    each site off its steps; ``ditto`` (Li et al. 2021): beside the common network each site trains one of its own, held
    near the common one; ``fedbn`` (Li et al. 2021): norm layers stay at the sites."""
    weights: Literal["cases", "equal"] = "cases"
    """What a site counts in the mean: its training cases, or as much as every other."""
    mu: float = Field(default=0.01, ge=0.0)
    """fedprox: weight of mu / 2 times the squared distance to the received network."""
    ditto_lambda: float = Field(default=0.1, ge=0.0)
    """ditto: weight of lambda / 2 times the squared distance of the site's own network to the received one."""
    server: ServerSection = Field(default_factory=lambda: ServerSection.model_validate({}))
    """fedopt: the optimiser at the server."""
    sgd: LocalSGDSection | None = None
    """A site's optimiser; unset: AdamW as ``segmentation.optimizer`` says. Either is made anew for every round."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of a site's rate over the steps of all rounds, after its warm-up."""
    candidates: Literal["received", "trained"] = "received"
    """Which networks a site chooses its own among, by its validation cases: as it receives them, so that all sites have
    the federation's, or as its own steps leave them. Under ditto it chooses among its own alone."""
    starts: tuple[Start, ...] = ("personal", "scratch")
    """Which models are tested. ``personal``: what the site chose; ``continued``: that one, trained on alone in
    fine-tuning; ``scratch``: trained alone from nothing."""

    finished: ClassVar[tuple[str, ...]] = ("personal",)
    """Starts whose models stand before fine-tuning begins."""

    @field_validator("starts")
    @classmethod
    def _once(cls, starts: tuple[Start, ...]) -> tuple[Start, ...]:
        return each_once(starts, get_args(Start), what="start", remedy="as in fedavg.starts=[personal, scratch]")

    @property
    def receives(self) -> bool:
        """Whether a site's model is one that it receives, so that later stages bring it the last."""
        return self.candidates == "received" and self.strategy != "ditto"

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        if experiment.network.name in BUILT_BY:
            raise ConfigurationError(
                "network.name",
                got=experiment.network.name,
                expected="a network that is averaged as a whole: unet, basic_unet, swin_unetr or unetr",
                remedy=f"use one of these; {BUILT_BY[experiment.network.name]} has baselines of its own for it",
            )
        check_network(experiment)
        if is_federated(experiment):
            raise ConfigurationError(
                "segmentation.fine_tuning",
                got="federated",
                expected=f"local: what sites train together here they train in the stage {STAGE}",
                remedy="set it to local",
            )
        if any(one.labels != experiment.data.labels for one in experiment.data.alternatives):
            raise ConfigurationError(
                "data.alternatives",
                got="other labels than data.labels",
                expected="one label map at all sites: networks of other classes have no average",
                remedy="give every alternative the labels of data.labels, or use segviz or fedcrld",
            )
        rounds, steps = experiment.stages[STAGE].rounds, experiment.segmentation.steps
        if rounds > steps:
            raise ConfigurationError(
                f"stages.{STAGE}.rounds",
                got=rounds,
                expected=f"at most {steps}, the steps that the rounds share (segmentation.steps)",
            )
        self._check_strategy(experiment)
        check_starts(experiment, STAGE, own="personal")
        if "continued" in self.starts and "personal" not in self.starts:
            raise ConfigurationError(
                "fedavg.starts",
                got=list(self.starts),
                expected="personal beside continued, which goes on from it",
                remedy="add personal to fedavg.starts",
            )
        check_stages(experiment)
        self._check_unread()

    def _check_strategy(self, experiment: Experiment) -> None:
        network = experiment.network
        if self.strategy == "fedbn" and isinstance(network, UNetSection) and network.norm == "instance":
            raise ConfigurationError(
                "fedavg.strategy",
                got="fedbn with network.norm instance, whose layers have no tensors",
                expected="norm layers with tensors to keep at the site",
                remedy="set network.norm to batch or instance_affine, or use another strategy",
            )
        if self.strategy == "scaffold" and (self.sgd is None or self.sgd.momentum):
            raise ConfigurationError(
                "fedavg.sgd",
                got="AdamW" if self.sgd is None else f"momentum {self.sgd.momentum:g}",
                expected="plain SGD with strategy scaffold, whose control variates are mean gradients: the way a site "
                "went, divided by its rates",
                remedy="set fedavg.sgd to {learning_rate: 0.05, momentum: 0.0}, or use another strategy",
            )

        if self.strategy == "scaffold" and experiment.federation.robust.clip != "none":
            raise ConfigurationError(
                "federation.robust.clip",
                got=f"{experiment.federation.robust.clip} with strategy scaffold",
                expected="none: the length of an update says nothing of the control variates beside it",
                remedy="set federation.robust.rule to trimmed_mean or median, which bound both number by number",
            )

    def _check_unread(self) -> None:
        readers = {
            "mu": (self.strategy == "fedprox", "strategy fedprox"),
            "ditto_lambda": (self.strategy == "ditto", "strategy ditto"),
            "server": (self.strategy == "fedopt", "strategy fedopt"),
            "candidates": (self.strategy != "ditto", "a strategy other than ditto"),
        }
        refuse_unread(self, "fedavg", readers)
        kinds = {
            "momentum": (self.server.optimizer == "sgd", "server.optimizer sgd"),
            "betas": (self.server.optimizer == "adam", "server.optimizer adam"),
            "epsilon": (self.server.optimizer != "sgd", "server.optimizer adam or adagrad"),
        }
        refuse_unread(self.server, "fedavg.server", kinds)
