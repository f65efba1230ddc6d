"""The ``segviz:`` section of experiment.yaml. A choice that is not listed here is not implemented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedmedseg.core.bounds import LARGEST
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, nearest
from fedmedseg.core.network_settings import UNetSection
from fedmedseg.core.schema import Misfit, Strict, refuse_unread
from fedmedseg.networks.factory import check_network

ONCE = {
    "head_tuning": "the heads are tuned once, from the best model of each site",
    "publication": "a site publishes its last model once",
}


class DistillationSection(Strict):
    """Conditional distillation from the model of the round's start, on the organs a case does not mark."""

    temperature: float = Field(2.0, gt=0.0)
    first: float = Field(0.01, ge=0.0)
    """Weight in the first round; it grows linearly to ``last`` in the last."""
    last: float = Field(1.0, ge=0.0)


class Section(Strict):
    """What is shared, how a site's loss treats what it does not mark, and what its models see."""

    mode: Literal["heads", "one_model"] = "heads"
    """``heads``: every site keeps a head for its own organs; ``one_model``: one head for all organs, shared too."""
    share: Literal["fedbn", "fedavg"] = "fedbn"
    """``fedbn``: norm layers stay at the site; ``fedavg``: only their running statistics do."""
    weights: Literal["equal", "cases"] = "equal"
    """What a site weighs in the average: the same as every other, or as many cases as it trains on."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate after its warm-up. The paper's code states a cosine, but steps it such that the rate stays
    within 0.04 % of its first value."""
    candidates: Literal["trained", "received"] = "trained"
    """Which models a site chooses its own among, by its validation cases: as each round's training leaves them (the
    paper's code), or as they are received, where every trunk is the federation's."""
    exclusion: float = Field(1.0, ge=0.0)
    """one_model: weight of the exclusion loss; 0 leaves it out."""
    distillation: DistillationSection | None = None
    """one_model: unset leaves it out."""
    windows: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """CT: HU range per organ that is mapped to 0..1, in place of ``data.window``. What a model sees is the union of
    the windows of all organs that it predicts. None or one for each organ."""
    head_steps: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Steps of the stage ``head_tuning``."""
    local_baseline: bool = False
    """Every site also trains a network alone, with the same batches and steps, to compare with."""

    @field_validator("windows")
    @classmethod
    def _low_below_high(cls, windows: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for organ, (low, high) in windows.items():
            if low >= high:
                raise Misfit(got={organ: [low, high]}, expected="(low, high) in HU with low < high")
        return windows

    @property
    def starts(self) -> tuple[str, ...]:
        """The models a site ends with, under the names of reports."""
        return ("personal", "scratch") if self.local_baseline else ("personal",)

    def check(self, experiment: Experiment) -> None:
        """Refuse combinations that no single section can see.

        Raises:
            ConfigurationError: naming the field, what came, what was expected and how to mend it.
        """
        if not isinstance(experiment.network, UNetSection):
            raise ConfigurationError(
                "network.name",
                got=experiment.network.name,
                expected="unet, whose last block is a site's head",
                remedy="write network: {name: unet}",
            )
        check_network(experiment)
        self._check_local_layers(experiment)
        self._check_windows(experiment)
        self._check_stages(experiment)
        one_model = (self.mode == "one_model", "mode one_model")
        refuse_unread(self, "segviz", {"exclusion": one_model, "distillation": one_model})
        elsewhere = (False, "a system that fine-tunes pretrained networks")
        fields = ("fine_tuning", "encoder_rate_factor", "encoder_rate_share")
        refuse_unread(experiment.segmentation, "segmentation", dict.fromkeys(fields, elsewhere))

    def _check_local_layers(self, experiment: Experiment) -> None:
        """Refuse ``fedbn`` where no norm layer has anything to keep."""
        assert isinstance(experiment.network, UNetSection)
        if self.share == "fedbn" and experiment.network.norm == "instance":
            raise ConfigurationError(
                "segviz.share",
                got="fedbn with network.norm instance, whose layers have no tensors",
                expected="norm layers with tensors to keep at the site",
                remedy="set network.norm to batch or instance_affine, or segviz.share to fedavg",
            )

    def _check_windows(self, experiment: Experiment) -> None:
        if not self.windows:
            return
        if experiment.data.modality != "ct":
            raise ConfigurationError(
                "segviz.windows",
                got=f"windows for data.modality {experiment.data.modality}",
                expected="none: Hounsfield units are CT's",
                remedy="remove windows",
            )
        organs = set(experiment.data.labels.values())
        for organ in sorted(set(self.windows) ^ organs):
            guess = nearest(organ, organs) if organ not in organs else None
            raise ConfigurationError(
                f"segviz.windows.{organ}",
                got="a window" if organ in self.windows else "no window",
                expected=f"one window for each of {', '.join(sorted(organs))}",
                remedy=f"write {guess!r}" if guess else "give every organ of data.labels its window, or none",
            )

    def _check_stages(self, experiment: Experiment) -> None:
        rounds = {stage: section.rounds for stage, section in experiment.stages.items()}
        steps = experiment.segmentation.steps
        if not 1 <= rounds["training"] <= steps:
            raise ConfigurationError(
                "stages.training.rounds",
                got=rounds["training"],
                expected=f"1 to {steps}, the steps that the rounds share (segmentation.steps)",
            )
        if rounds["evaluation"] != 1:
            raise ConfigurationError(
                "stages.evaluation.rounds", got=rounds["evaluation"], expected="1: the test set is read once"
            )
        for stage in (name for name in ONCE if name in rounds):
            if rounds[stage] > 1:
                raise ConfigurationError(f"stages.{stage}.rounds", got=rounds[stage], expected=f"0 or 1: {ONCE[stage]}")
        if (rounds["head_tuning"] > 0) != (self.head_steps > 0):
            raise ConfigurationError(
                "segviz.head_steps",
                got=f"{self.head_steps} with stages.head_tuning.rounds {rounds['head_tuning']}",
                expected="both 0, or one round and its steps",
                remedy="set both, or neither",
            )
