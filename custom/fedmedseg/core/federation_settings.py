"""The sections ``federation``, ``stages`` and ``compute`` of experiment.yaml: who takes part, and by what means."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedmedseg.core.bounds import MOST_ROUNDS, Positive
from fedmedseg.core.schema import Misfit, Strict


class StageSection(Strict):
    """How often the server asks for a stage, and how long it waits."""

    rounds: int = Field(default=1, ge=0, le=MOST_ROUNDS)
    """0 leaves the stage out, where the system can do without it."""
    timeout: Positive | None = None
    """Seconds a round may take; unset: federation.timeout."""


class RobustSection(Strict):
    """What bounds a single site's influence on the shared model (``core.robust``)."""

    rule: Literal["mean", "trimmed_mean", "median", "krum"] = "mean"
    """In place of the mean, in every stage whose rule is one: number by number the mean without the ``faulty`` least
    and largest, or the median, or the one update nearest to the others. Sites then count alike, however many cases."""
    clip: Literal["none", "median"] = "none"
    """``median``: an update longer than the running median of the sites' lengths is brought to it, before any rule."""
    faulty: Positive = 1
    """How many sites may be faulty, or in league: the rules hold from 2 faulty + 1 sites on, ``krum`` from
    2 faulty + 3; with fewer the study is refused, and a round stays below its quorum."""

    @property
    def acts(self) -> bool:
        """Whether anything is changed, not only told."""
        return self.rule != "mean" or self.clip != "none"

    @property
    def least(self) -> int:
        """Sites that a round needs at least for the rule to hold."""
        if not self.acts:
            return 1
        return 2 * self.faulty + (3 if self.rule == "krum" else 1)

    @property
    def named(self) -> str:
        """The rule and its condition, for messages."""
        what = self.rule if self.clip == "none" else f"{self.rule} with clip {self.clip}"
        return f"{what} with {self.faulty} faulty"

    @model_validator(mode="after")
    def _read(self) -> RobustSection:
        if self.faulty != 1 and not self.acts:
            raise Misfit(
                "faulty",
                got=self.faulty,
                expected="nothing here: it is read with a rule other than mean, or clip median",
                remedy="remove faulty, or choose a rule",
            )
        return self


class FederationSection(Strict):
    """Quorum and patience."""

    quorum: (
        Literal["all"] | Annotated[int, Field(gt=0, strict=True)] | Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
    ) = "all"
    """``all``, a count, or a fraction below 1 of the sites that take part in the stage."""
    timeout: Positive = 3600
    wait_after_quorum: Positive | None = None
    """Seconds to wait for the rest once as many sites as the quorum have answered, whether they succeeded or not;
    unset: the stage's timeout. A short wait may leave out sites that are still training."""
    no_progress_rounds: Positive = 3
    """The job fails when the shared model has not changed for so many rounds; cannot be seen under encryption."""
    encryption: Literal["none", "ckks"] = "none"
    """``ckks``: sites encrypt their differences and the server adds them up unread (``core.ckks``). For stages whose
    rule is a weighted mean, in a federation whose kits hold the keys; privacy/README.md says what it turns off."""
    transport: Literal["fp32", "fp16", "int8", "topk"] = "fp32"
    """How the differences of a site travel to the server (``core.transport``): as they are, in half or a quarter of the
    bytes, or the largest of a hundred numbers, with what was not sent added to the next round's."""
    transport_down: Literal["fp32", "fp16", "int8"] = "fp32"
    """How the shared tensors travel to the sites. The server keeps them as they are; every site starts from what it
    decodes, bit for bit the same everywhere. There is no ``topk``: a network is no difference, and a hundredth of it is
    none at all."""
    robust: RobustSection = Field(default_factory=lambda: RobustSection.model_validate({}))
    """Bounds on the influence of single sites; none by default, when they are only told of."""

    @model_validator(mode="after")
    def _settings_suit_each_other(self) -> FederationSection:
        if self.robust.acts and self.encryption != "none":
            raise Misfit(
                "robust",
                got=f"{self.robust.named} and encryption {self.encryption}",
                expected="no rule that compares the sites' updates, which the server then cannot read",
                remedy="remove robust, or set encryption to none",
            )
        if self.transport != "fp32" and self.encryption != "none":
            raise Misfit(
                "transport",
                got=f"{self.transport} with encryption {self.encryption}",
                expected="fp32: what is encrypted has no scales or places that a server could read",
                remedy="remove transport, or set encryption to none",
            )
        if self.transport_down != "fp32" and self.encryption != "none":
            raise Misfit(
                "transport_down",
                got=f"{self.transport_down} with encryption {self.encryption}",
                expected="fp32: sites add encrypted sums to exactly what the server sent",
                remedy="remove transport_down, or set encryption to none",
            )
        if self.transport == "topk" and self.robust.rule in ("trimmed_mean", "median"):
            raise Misfit(
                "transport",
                got=f"topk with robust.rule {self.robust.rule}",
                expected="another transport: number by number most sites send nothing, and that would be the median",
                remedy="use fp16 or int8, or robust.clip",
            )
        if isinstance(self.quorum, int) and self.quorum < self.robust.least:
            raise Misfit(
                "quorum",
                got=self.quorum,
                expected=f"at least {self.robust.least}, below which {self.robust.named} does not hold",
                remedy="raise quorum, or lower robust.faulty",
            )
        return self

    def needed(self, taking_part: int) -> int:
        """The number of accepted replies a round needs."""
        if self.quorum == "all":
            return taking_part
        if isinstance(self.quorum, float):
            # 0.55 * 100 is a little more than 55 in floating point, and still means 55
            return max(1, math.ceil(self.quorum * taking_part - 1e-9))
        return self.quorum


class ComputeSection(Strict):
    """What a site computes with."""

    threads: Positive = 1
    """Torch threads per site; fixed, so that results do not depend on how many sites run at once. FCL and FCLOpt make
    their batches in one more."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_seconds: float = Field(30.0, ge=0.0)
    """A running task is saved at most this often, so that a killed process continues."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Of forward passes (``core.compute``); weights, gradients and losses are float32 always. ``auto``, here and in
    the next two, lets each site time its own network on its own machine once and remember what is fastest, which is
    never slower than plain float32. What a clock decides may come out differently on another machine or after the
    site's cache was emptied, and other arithmetic gives other last bits: a study whose results must repeat byte for
    byte keeps the fixed defaults, one that must be fast sets all three to ``auto``."""
    attention: Literal["fused", "explicit", "auto"] = "fused"
    """One kernel for softmax attention where MONAI has it, or attention written out."""
    layout: Literal["contiguous", "channels_last", "auto"] = "contiguous"
    """Order of convolutions' tensors in memory."""
